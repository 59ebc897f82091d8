"""Grids of memory runs, and the ensembles that train them."""

import json
import shutil
from functools import partialmethod
from pathlib import Path

import pytest

from itl_env.errors import ConfigError, ITLError
from itl_train.ensemble import EnsembleRun
from itl_train.memory_sweep import memory_cells, sweep_memory
from itl_train.run_folder import RunFolder
from itl_train.runs import load_runs
from itl_train.sweep import Launcher
from itl_train.watch_config import WatchConfig


def test_a_contradiction_is_found_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        memory_cells({"d_model": [64, 65]}, {"database": "facts.db"})
    with pytest.raises(ConfigError, match="No database"):
        memory_cells({"seed": [0]}, {})
    with pytest.raises(ConfigError, match="no value of seed"):
        memory_cells({"lr": [1e-3], "seed": []}, {"database": "facts.db"})
    with pytest.raises(ConfigError, match="n_people is 'many'; it must be of type int"):
        memory_cells({"n_people": ["many"]}, {"database": "facts.db"})
    with pytest.raises(ConfigError, match="sead"):
        memory_cells({"seed": [0]}, {"database": "facts.db", "sead": 1})
    with pytest.raises(ConfigError, match="without a password") as refused:
        memory_cells({"database": ["postgresql://me:secret@host/facts"]}, {})
    assert "secret" not in str(refused.value)


def small(world: str, **changes: object) -> dict[str, object]:
    """Settings of runs that train as one model."""
    return {
        "database": world, "mode": "in-weight", "n_people": 4, "n_unseen": 0, "d_model": 16,
        "n_layers": 1, "n_heads": 2, "d_hidden": 16, "batch_size": 4, "n_steps": 60, "n_threads": 1,
        "log_every": 20, "checkpoint_every": 20, "n_evaluate": 4, **changes,
    }  # fmt: skip


def test_a_member_that_fails_does_not_take_the_others_along(world: str, tmp_path: Path) -> None:
    cells = memory_cells({"lr": [1e-3, 1e30, 2e-3]}, small(world))
    with pytest.warns(UserWarning, match="ensemble-of-3-.* failed; its members are run alone"):
        rows = sweep_memory(cells, tmp_path, Launcher("here"))
    assert [row["lr"] for row in rows] == [1e-3, 2e-3]
    (ensemble,) = tmp_path.glob("ensemble-of-3-*")
    assert "The loss of member 1" in (ensemble / "failure.txt").read_text()
    assert "The loss is" in (tmp_path / "lr=1e+30" / "failure.txt").read_text()
    (tmp_path / "config.yaml").write_text("n_steps: 3\n")  # as a benchmark has, of whose runs it is
    assert sorted(load_runs(tmp_path)["run"]) == ["lr=0.001", "lr=0.002", "lr=1e+30"]
    (tmp_path / "config.yaml").unlink()
    before = (tmp_path / "lr=0.001" / "row.json").stat().st_mtime_ns
    assert sweep_memory(cells, tmp_path, Launcher("here")) == rows
    assert (tmp_path / "lr=0.001" / "row.json").stat().st_mtime_ns == before


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(
    world: str, tmp_path: Path
) -> None:
    cells = memory_cells({"seed": [0]}, small(world, device="tpu"))
    with pytest.raises(ConfigError, match="Cannot train on device 'tpu'"):
        sweep_memory(cells, tmp_path / "sweep", Launcher())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("max_length", 32, "max_length is 32, shorter than the longest dialogue"),
        ("sources", ["nofile.jsonl"], "no source 'nofile.jsonl'"),
        ("tokenizer", "nofile.json", "no tokenizer at nofile.json"),
    ],
)
def test_data_that_do_not_fit_are_found_before_anything_is_written(
    world: str, tmp_path: Path, setting: str, value: object, why: str
) -> None:
    cells = memory_cells({"seed": [0, 1], setting: [value]}, small(world))
    with pytest.raises(ConfigError, match=why):
        sweep_memory(cells, tmp_path / "sweep", Launcher("here"))
    assert not (tmp_path / "sweep").exists()


def test_a_run_has_one_gpu(world: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gpus is 2, but each run trains on one"):
        sweep_memory(memory_cells({"seed": [0]}, small(world)), tmp_path, Launcher(gpus=2))


def test_watched_runs_train_alone_and_are_looked_into(world: str, tmp_path: Path) -> None:
    cells = memory_cells({"seed": [0, 1]}, small(world, n_steps=4))
    watch = WatchConfig(probe_every=2)
    with pytest.raises(ConfigError, match="train alone"):
        sweep_memory(cells, tmp_path, Launcher("here"), ensemble=2, watch=watch)
    sweep_memory(cells, tmp_path, Launcher("here"), watch=watch)
    for seed in (0, 1):
        rows = RunFolder(tmp_path / f"seed={seed}").rows()
        assert [row["step"] for row in rows if "activation_rms" in row] == [2, 4]


def test_a_finished_sweep_is_read_without_its_database(world: str, tmp_path: Path) -> None:
    database = tmp_path / "facts.db"
    shutil.copy(world.removeprefix("sqlite:///"), database)
    cells = memory_cells({"seed": [0]}, small(f"sqlite:///{database}", n_steps=2))
    out = tmp_path / "sweep"
    out.mkdir()
    (out / ".made-by.txt.0a1b2c3d").touch()  # of a sweep that was killed as it began
    rows = sweep_memory(cells, out, Launcher("here"))
    database.unlink()
    assert sweep_memory(cells, out, Launcher("here")) == rows
    more = memory_cells({"seed": [0, 1]}, small(f"sqlite:///{database}", n_steps=2))
    with pytest.raises(ITLError, match="no database"):
        sweep_memory(more, out, Launcher("here"))


def test_an_interrupted_ensemble_is_finished_by_another_grid(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: EnsembleRun, step: int) -> None:
        """Let the ensemble be interrupted after a step."""

        def on_metrics(row: dict[str, object]) -> None:
            if row["step"] == step:
                raise KeyboardInterrupt

        train(run, on_metrics)

    train = EnsembleRun.train
    three, four = (memory_cells({"seed": range(n)}, small(world)) for n in (3, 4))
    expected = sweep_memory(three, tmp_path / "whole", Launcher("here"))
    out = tmp_path / "interrupted"
    with monkeypatch.context() as patched:
        patched.setattr(EnsembleRun, "train", partialmethod(interrupted, 40))
        with pytest.raises(KeyboardInterrupt):
            sweep_memory(three, out, Launcher("here"))
    (ensemble,) = out.glob("ensemble-of-3-*")
    with pytest.raises(ConfigError, match=r"with lr=0\.004, not 0\.5"):
        sweep_memory(memory_cells({"seed": range(3)}, small(world, lr=0.5)), out, Launcher("here"))

    rows = sweep_memory(four, out, Launcher(workers=2))  # which would make other ensembles
    steps = [json.loads(line)["step"] for line in (ensemble / "metrics.jsonl").open()]
    assert steps == [20, 40, 60], "it went on"
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert timeless[:3] == expected
    assert sorted(load_runs(out)["seed"]) == [0, 1, 2, 3]
