"""The evaluation of fine-tuning runs: what is measured, compared, kept and not measured again."""

import dataclasses
import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.evaluation import Measured, RunEvaluation
from itl_env.errors import ConfigError
from itl_train.checkpoint import checkpoints
from itl_train.runs import load_runs
from itl_train.sft import train_sft

from ..itl_train.test_sft import small, tiny_llama
from .test_hellaswag import ITEMS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.xdist_group("lm-eval"),  # which is slow to import
]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("items") / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return file


@pytest.fixture(scope="module")
def trained(world: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = small(
        world, tiny_llama(folder / "llama"), lora_rank=0, lr=5e-3, n_facts=4, n_unseen=4,
        n_steps=60, evaluate_every=500.0, checkpoint_every=30.0,
    )  # fmt: skip
    train_sft(settings, folder / "run")
    return folder / "run"


def test_a_run_is_measured_checkpoint_by_checkpoint(
    run, trained: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "eval", trained, "--every", "--n-seen", "4", "--n-unseen", "4", "--hellaswag", "6",
        "--hellaswag-file", items, "--drift", "2", "--drift-tokens", "6",
    )  # fmt: skip
    status, said, _ = run(*command)
    assert status == 0
    table = pd.read_csv(trained / "evaluations" / "table.csv")
    names = [path.name for path in checkpoints(trained / "checkpoints")]
    assert table["checkpoint"].tolist() == ["base", *names]
    base, last = table.iloc[0], table.iloc[-1]
    assert base["seen_recall"] == 0.0
    assert last["seen_recall"] == 1.0, "60 steps teach four facts"
    assert (base["drift_kl"], base["hellaswag_acc_relative"]) == (0.0, 1.0)
    assert last["drift_kl"] > 1.0
    assert 0 < last["drift_tv"] <= 1
    assert last["hellaswag_items"] == 6
    assert last["hellaswag_acc_change"] == pytest.approx(
        last["hellaswag_acc"] - base["hellaswag_acc"]
    )
    samples = json.loads((trained / "evaluations" / names[-1] / "recall.json").read_text())
    assert samples["result"]["seen"]["samples"][0]["right"] is True
    assert f"{names[-1]}" in said
    assert "seen 100.0%" in said

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        for part in ("recall", "hellaswag", "drift"):
            patched.setattr(RunEvaluation, f"_measure_{part}", refuse)
        assert run(*command)[:2] == (0, said)
        (trained / "evaluations" / names[-1] / "drift.json").unlink()
        with pytest.raises(AssertionError, match="measured again"):
            run(*command)
    assert run(*command)[:2] == (0, said), "only what was left is measured, to the same figures"


def test_one_checkpoint_is_measured_by_its_folder(run, trained: Path) -> None:
    first = checkpoints(trained / "checkpoints")[0]
    status, said, _ = run("eval", first, "--every", "--n-seen", "2", "--n-unseen", "2")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()[:2]] == ["base", first.name]


def test_other_settings_are_measured_anew(trained: Path, items: Path) -> None:
    last = checkpoints(trained / "checkpoints")[-1:]
    for n in (2, 4):
        table = RunEvaluation(trained, Measured(n_seen=n, n_unseen=0)).run(last)
        assert table["seen_asked"].tolist() == [n, n]
        assert "unseen_asked" not in table
        assert "hellaswag_acc" not in table


def test_drift_may_be_measured_over_more_prompts_or_longer_answers(trained: Path) -> None:
    last = checkpoints(trained / "checkpoints")[-1:]
    found = []
    for n, tokens in ((2, 6), (3, 6), (2, 4), (2, 6)):
        measured = Measured(n_seen=0, n_unseen=0, drift=n, drift_tokens=tokens)
        found.append(RunEvaluation(trained, measured).run(last)["drift_n_tokens"].iloc[-1])
    assert found[1] > found[0] > found[2]
    assert found[3] == found[0]


def test_a_runs_table_holds_what_was_measured_of_it(trained: Path) -> None:
    RunEvaluation(trained, Measured(n_seen=3, n_unseen=0)).run()
    (row,) = load_runs(trained.parent).to_dict("records")
    assert (row["run"], row["checkpoint"], row["lr"]) == ("run", "step-0000060", 5e-3)
    assert row["seen_recall"] == 1.0


def test_lines_of_other_checkpoints_stay_in_the_table(trained: Path) -> None:
    measured = Measured(n_seen=2, n_unseen=0)
    whole = RunEvaluation(trained, measured).run()
    evaluation = RunEvaluation(trained, dataclasses.replace(measured, n_seen=4))
    assert evaluation.run(evaluation.checkpoints()[-1:])["seen_asked"].tolist() == [4, 4]
    table = pd.read_csv(trained / "evaluations" / "table.csv")
    assert table["checkpoint"].tolist() == whole["checkpoint"].tolist()
    assert table["seen_asked"].tolist() == [4, 2, 4]


def test_what_the_base_is_not_asked_cannot_be_compared(trained: Path, items: Path) -> None:
    fewer = Measured(hellaswag=2, hellaswag_file=str(items))
    with pytest.raises(ConfigError, match="over 3 items of HellaSwag: it is asked 2"):
        RunEvaluation(trained, fewer, between=dataclasses.replace(fewer, hellaswag=3))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "No such file"),
        ("text.jsonl", b"Hello.\n", "holds no items of HellaSwag: each line"),
        (
            "others.jsonl.gz",
            gzip.compress(b'{"query": "?"}\n', mtime=0),
            "holds no items of HellaSwag",
        ),
        ("bad.jsonl.gz", b"\x1f\x8b no such thing", "holds no items of HellaSwag"),
        (
            "torn.jsonl.gz",
            gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 9,
            "holds no items of HellaSwag",
        ),
        (
            "cut.jsonl.gz",
            gzip.compress(b'{"query": "?"}\n', mtime=0)[:12],
            "holds no items of HellaSwag",
        ),
    ],
)
def test_a_file_without_items_is_refused_before_anything_is_measured(
    trained: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        RunEvaluation(trained, Measured(hellaswag=1, hellaswag_file=str(tmp_path / name)))


def test_fewer_items_than_wanted_are_told(trained: Path, items: Path, tmp_path: Path) -> None:
    wanted = Measured(n_seen=0, n_unseen=0, hellaswag=7, hellaswag_file=str(items))
    with pytest.warns(UserWarning, match="HellaSwag has 6 items there, fewer than 7"):
        RunEvaluation(trained, wanted, base_folder=tmp_path).measure_base()


def test_checkpoints_in_between_may_be_measured_with_less(
    trained: Path, items: Path, tmp_path: Path
) -> None:
    between = Measured(n_seen=0, n_unseen=0, hellaswag=3, hellaswag_file=str(items), drift=1)
    full = Measured(
        n_seen=4, n_unseen=0, hellaswag=6, hellaswag_file=str(items), drift=2, drift_tokens=6
    )
    between = dataclasses.replace(between, drift_tokens=6)
    evaluation = RunEvaluation(trained, full, between=between, base_folder=tmp_path)
    table = evaluation.run().set_index("checkpoint")
    first, last = table.index[1:]
    assert table["hellaswag_items"].tolist() == [6, 3, 6]
    assert table["drift_n_tokens"][first] < table["drift_n_tokens"][last]
    assert table["seen_asked"].isna().tolist() == [False, True, False]
    right = json.loads((tmp_path / "hellaswag.json").read_text())["result"]["acc"]
    expected = table["hellaswag_acc"][first] - sum(right[:3]) / 3
    assert table["hellaswag_acc_change"][first] == pytest.approx(expected)


def test_what_is_no_fine_tuning_run_is_refused(run, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        RunEvaluation(tmp_path, Measured())
    (tmp_path / "config.yaml").write_text("d_model: 3\n")
    with pytest.raises(ConfigError, match="began from nothing, so there is no base"):
        RunEvaluation(tmp_path, Measured())
    status, _, said = run("eval", trained, "--drift", "2")
    assert (status, said) == (2, "itl: HellaSwag and drift are measured with --every.\n")
    with pytest.raises(ConfigError, match="hellaswag is -1"):
        Measured(hellaswag=-1)
