"""Sweeps with submitit's real local executor."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import submitit

from benchmarks.cells import train_cell
from benchmarks.cli import main
from itl_env.errors import ConfigError, ITLError
from itl_train import sweep as sweeps
from itl_train.jobs import Processes
from itl_train.sweep import (
    Cell,
    Job,
    Launcher,
    Row,
    State,
    at_work,
    for_device,
    grid,
    state,
    sweep,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which jobs cannot import

MODEL = {
    "mode": "in-weight", "d_model": 8, "n_layers": 1, "n_heads": 2, "d_hidden": 8, "batch_size": 4,
    "n_steps": 4, "n_evaluate": 2, "n_threads": 1,
}  # fmt: skip


def cell(name: str, **changes: object) -> Cell:
    world = {"n_people": 4, "seed": 0, "n_unseen": 0}
    return Cell(name, {"world": world, "model": MODEL | changes})


def test_a_grid_is_every_combination_in_order() -> None:
    found = list(grid({"n": [1, 2], "mode": ["a", "b"]}))
    assert found == [
        {"n": 1, "mode": "a"},
        {"n": 1, "mode": "b"},
        {"n": 2, "mode": "a"},
        {"n": 2, "mode": "b"},
    ]


def test_cells_run_once_and_a_failed_one_again_on_request(tmp_path: Path) -> None:
    launcher = Launcher(workers=2)
    seen: list[Mapping[str, State]] = []
    cells = [cell("one"), cell("bad", n_heads=3), cell("two", d_model=16)]
    rows = sweep(cells, train_cell, tmp_path, launcher, on_change=lambda s: seen.append(dict(s)))
    assert [row["cell"] for row in rows] == ["one", "two"]
    assert rows[0]["seen_asked"] == 16
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert seen[-1] == {"one": "done", "bad": "failed", "two": "done"}
    assert "does not divide" in (tmp_path / "bad" / "failure.txt").read_text()
    assert {"running"} < {state for states in seen for state in states.values()}

    before = (tmp_path / "one" / "row.json").stat().st_mtime_ns
    assert sweep(cells, train_cell, tmp_path, launcher) == rows, "nothing is run again"
    assert (tmp_path / "one" / "row.json").stat().st_mtime_ns == before
    mended = [cells[0], cell("bad"), cells[2]]
    rows = sweep(mended, train_cell, tmp_path, Launcher("here"), retry=True)
    assert [row["cell"] for row in rows] == ["one", "bad", "two"]


def test_rows_from_elsewhere_count_as_done(tmp_path: Path) -> None:
    known = [{"cell": "one", "seen_recall": 0.5}, {"cell": "of another sweep"}]
    rows = sweep([cell("one")], train_cell, tmp_path, Launcher(), known=known)
    assert rows == known[:1]
    assert list(tmp_path.iterdir()) == []


def die(settings: Mapping[str, Any], folder: Path) -> Row:
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


def test_a_job_that_dies_says_so(tmp_path: Path) -> None:
    assert sweep([cell("one")], die, tmp_path, Launcher()) == []
    said = (tmp_path / "one" / "failure.txt").read_text()
    assert "died" in said
    assert "last words" in said


def time_left(settings: Mapping[str, Any], folder: Path) -> Row:
    return {"seconds_left": float(os.environ["SUBMITIT_LOCAL_TIMEOUT_S"])}


def test_a_job_of_this_machine_has_no_end(tmp_path: Path) -> None:
    (row,) = sweep([cell("one")], time_left, tmp_path, Launcher(minutes=1))
    assert row["seconds_left"] > 10 * 365 * 24 * 3600


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="called 'one'"):
        sweep([cell("one"), cell("one")], train_cell, tmp_path, Launcher())


def test_a_row_is_json(tmp_path: Path) -> None:
    learns = {"n_steps": 300, "lr": 8e-3, "d_model": 16}
    row = train_cell(cell("one", **learns).settings, tmp_path / "one")
    assert json.loads(json.dumps(row)) == row
    assert row["exposures"] == 75.0
    assert row["lr"] == 8e-3, "a row tells its settings"
    known = row["seen_recall"] * 16 * row["bits_per_fact"]
    assert row["bits_per_parameter"] == pytest.approx(known / row["parameters"])
    assert row["seen_recall"] > 0, "else nothing would be tested here"


def test_a_sweep_that_is_ended_takes_its_jobs_along(tmp_path: Path, world: str) -> None:
    """And one that is killed leaves a job, for which the next sweep waits."""
    axes = [f"database={world}", "n_people=20", "n_unseen=0", "mode=in-weight", "d_model=8"]
    axes += ["n_heads=2", "n_layers=1", "batch_size=4", "n_evaluate=2", "log_every=10"]
    axes += ["n_steps=400"]
    for number, name in ((signal.SIGTERM, "ended"), (signal.SIGKILL, "killed")):
        out = tmp_path / name
        command = [sys.executable, "-m", "benchmarks.cli", "sweep", "memory", *axes, "--out", out]
        running = subprocess.Popen(command, stderr=subprocess.PIPE)
        metrics = out / "run" / "metrics.jsonl"
        while not metrics.exists():
            assert running.poll() is None
            time.sleep(0.05)
        assert at_work(out / "run")
        running.send_signal(number)
        running.wait(timeout=30)
        if number == signal.SIGTERM:
            assert running.returncode == 128 + number
            assert running.stderr is not None
            said = running.stderr.read().decode()
            assert said.endswith("itl: ended; the same command goes on from where it stopped.\n")
            assert "Traceback" not in said
            for _ in range(100):
                if not at_work(out / "run"):
                    break
                time.sleep(0.1)
            assert not at_work(out / "run")
            assert state(out / "run") == "waiting"
        else:
            assert at_work(out / "run")
        assert main(["sweep", "memory", *axes, "--launcher", "here", "--out", str(out)]) == 0
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert steps == sorted(steps), "nobody else has written there"
        assert steps[-1] == 400


def do_nothing(settings: Mapping[str, Any], folder: Path) -> Row:
    return {}


def test_a_job_that_is_refused_for_now_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one beyond the number of jobs that Slurm lets a user have."""
    submitted: list[bool] = []

    class OneAtATime(Processes):
        def submit(self, work: Job, folder: Path) -> submitit.Job:
            at_work = len(submitted) - sum((tmp_path / n / "row.json").exists() for n in "ab")
            if at_work:
                raise ITLError("Slurm refuses the job: there are too many.")
            submitted.append(True)
            return super().submit(work, folder)

    monkeypatch.setattr(sweeps, "Processes", OneAtATime)
    rows = sweep([cell("a"), cell("b")], do_nothing, tmp_path, Launcher(workers=2))
    assert [row["cell"] for row in rows] == ["a", "b"]

    def refuse(*_: object) -> None:
        raise ITLError("Slurm refuses the job: there is no such partition.")

    monkeypatch.setattr(OneAtATime, "submit", refuse)
    with pytest.raises(ITLError, match="no such partition"):
        sweep([cell("d")], do_nothing, tmp_path, Launcher())


def test_runs_on_gpus_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("itl_train.team.check_device", lambda device: None)  # as if they were here
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert for_device(Launcher(), "cuda").at_a_time == 4
    assert for_device(Launcher(gpus=2), "cuda").at_a_time == 2
    assert for_device(Launcher(workers=3), "cuda").at_a_time == 3
    assert for_device(Launcher("slurm"), "cuda") == Launcher("slurm", gpus=1)
    assert for_device(Launcher("here"), "cuda") == Launcher("here")
    assert for_device(Launcher(), "cpu") == Launcher()
    assert for_device(Launcher(), "cuda:1") == Launcher(), "all share the one that is named"


def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "usable_cores", lambda: 8)
    assert [Launcher(threads=n).at_a_time for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert Launcher(threads=2, workers=8).at_a_time == 8


def test_jobs_have_only_gpus_that_the_sweep_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    jobs = sweeps._jobs(Launcher(gpus=1), tmp_path)
    shown = [jobs.submit(partial(os.getenv, "CUDA_VISIBLE_DEVICES"), tmp_path) for _ in range(2)]
    assert [job.result() for job in shown] == ["6", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937,GPU-c2b5d4f1")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES is GPU-8932f937"):
        sweeps._jobs(Launcher(gpus=1), tmp_path)


def test_seconds_are_those_of_all_attempts(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".seconds").write_text("1000.0\n")
    (row,) = sweep([cell("one")], train_cell, tmp_path, Launcher("here"))
    assert 1000 < row["seconds"] < 1060


def test_jobs_side_by_side_have_gpus_of_their_own(tmp_path: Path) -> None:
    """No GPU is needed to see which ones a job is shown."""
    jobs = Processes(tmp_path, {"gpus_per_node": 1}, gpus=[4, 5], share=1)
    shown = [jobs.submit(partial(os.getenv, "CUDA_VISIBLE_DEVICES"), tmp_path) for _ in range(2)]
    assert [job.result() for job in shown] == ["4", "5"]
    assert jobs.over(shown[1], has_result=True)
    assert jobs.submit(partial(os.getenv, "CUDA_VISIBLE_DEVICES"), tmp_path).result() == "5"
    with pytest.raises(ConfigError, match="gpus is 1000, but this machine has"):
        sweep([cell("one")], train_cell, tmp_path, Launcher(gpus=1000))
