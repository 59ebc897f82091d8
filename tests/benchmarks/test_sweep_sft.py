"""Grids of fine-tuning runs, and their evaluation as jobs."""

from pathlib import Path

import pandas as pd
import pytest

from itl_train.runs import load_runs

from ..itl_train.test_sft import tiny_llama
from .command_line import sentence

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "n_facts=4", "n_unseen=4", "n_steps=2", "mode=in-weight", "batch_size=4", "n_evaluate=2",
    "checkpoint_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("pretrained") / "llama")


def test_a_grid_is_fine_tuned_and_every_checkpoint_measured(
    run, world: str, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    grid = (f"database={world}", f"model={llama}", *SMALL, "seed=0,1")
    command = ("sweep", "sft", *grid, "--launcher", "here", "--out", out)
    status, said, _ = run(*command)
    assert status == 0
    assert "2 of 2 runs are done" in said
    rows = pd.read_csv(out / "runs.csv")
    assert rows["seed"].tolist() == [0, 1]
    assert sorted(load_runs(out)["seed"]) == [0, 1]
    assert run(*command)[1] == said, "nothing is run again"
    assert run("sweep", "status", out)[1] == "2 done, 0 running, 0 waiting, 0 failed\n"

    jobs = tmp_path / "jobs"
    evaluate = (
        "sweep", "eval", out, "--n-seen", "2", "--n-unseen", "2", "--launcher", "here",
        "--out", jobs,
    )  # fmt: skip
    status, said, _ = run(*evaluate)
    assert status == 0
    table = pd.read_csv(jobs / "table.csv")
    assert table["checkpoint"].tolist() == ["base", "step-0000001", "step-0000002"] * 2
    assert table["run"].nunique() == 2
    assert run("sweep", "status", jobs)[1] == "6 done, 0 running, 0 waiting, 0 failed\n"
    assert run(*evaluate)[1] == said


def test_contradictions_are_found_before_anything_is_written(
    run, world: str, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    for grid, why in (
        (("seed=0",), "No database is named"),
        ((f"database={world}", "seed=0"), "No model is named"),
        ((f"database={world}", f"model={llama}", "n_facts=3"), "no whole number of people"),
        ((f"database={world}", f"model={llama}", "n_facts=4000"), "holds 1,600 facts"),
        ((f"database={world}", "model=smolm-135m"), "There is no model 'smolm-135m'"),
        ((f"database={world}", f"model={llama}", "d_model=64"), "no setting 'd_model'"),
        ((f"database={world}", f"model={llama}", "lr=-1"), "lr is -1; it must not be negative"),
    ):
        status, _, err = run("sweep", "sft", *grid, "--launcher", "here", "--out", out)
        assert status == 2
        assert why in sentence(err)
        assert not out.exists()
    status, _, err = run("sweep", "eval", "--out", out)
    assert (status, "Name the folders of runs" in sentence(err)) == (2, True)
    status, _, err = run("sweep", "eval", tmp_path, "--out", out)
    assert (status, sentence(err)) == (2, f"itl: There is no run in {tmp_path}.")
