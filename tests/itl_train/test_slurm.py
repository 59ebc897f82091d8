"""Sweeps on a real Slurm: `.ci/slurm python -m pytest tests/itl_train/test_slurm.py`."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks.cells import train_cell
from benchmarks.cli import main
from itl_env.errors import ITLError
from itl_train import jobs
from itl_train.sweep import Cell, Launcher, Row, State, sweep

HERE = Launcher(launcher="here")
SLURM = Launcher(launcher="slurm", memory_gb=1)
MODEL = {
    "mode": "in-weight", "d_model": 8, "n_layers": 1, "n_heads": 2, "d_hidden": 8, "batch_size": 4,
    "n_steps": 4, "n_evaluate": 2, "n_threads": 1,
}  # fmt: skip
STEPS = 3_000  # longer than it takes Slurm to kill a job


@pytest.fixture(scope="module", autouse=True)
def slurm(require) -> None:
    """Jobs are submitted only where somebody says that they may be, and Slurm answers."""
    require(os.environ.get("ITL_TEST_SLURM") == "1", "no Slurm may be used (ITL_TEST_SLURM=1)")
    try:
        problem = subprocess.run(["sinfo"], capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        problem = "there is no sinfo"
    require(not problem, f"no Slurm answers: {problem.strip()}")


def cell(name: str, **changes: object) -> Cell:
    world = {"n_people": 4, "seed": 0, "n_unseen": 0}
    return Cell(name, {"world": world, "model": MODEL | changes})


def long(steps: int = STEPS) -> Cell:
    """A cell of a run that nothing but a signal makes save before its end."""
    rare = {"checkpoint_every": steps, "evaluate_every": steps, "log_every": 20}
    return cell("long", n_steps=steps, **rare)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return timeless(sweep([long()], train_cell, tmp_path_factory.mktemp("here"), HERE))


def timeless(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def lines(run: Path) -> list[str]:
    """The metrics of a run so far."""
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def job_of(run: Path) -> str:
    """The id of the job that Slurm lists for a run."""
    listed = subprocess.check_output(["squeue", "--noheader", "--format=%A %k"], text=True)
    (job_id,) = [line.split()[0] for line in listed.splitlines() if line.endswith(str(run))]
    return job_id


def once_it_trains(run: Path, act: Callable[[str], None]) -> Callable[[Mapping[str, State]], None]:
    """An `on_change` that acts once on the run's job, when it has logged some steps."""
    acted: list[str] = []

    def watch(states: Mapping[str, State]) -> None:
        if states[run.name] == "running" and not acted:
            acted.append(job_of(run))
            deadline = time.monotonic() + 120
            while len(lines(run)) < 4:
                assert time.monotonic() < deadline, "it never began to train"
                time.sleep(0.1)
            act(acted[0])

    return watch


def test_rows_are_those_of_this_process_and_a_failure_keeps_its_traceback(tmp_path: Path) -> None:
    cells = [cell("one"), cell("bad", n_heads=3), cell("two, of d_model=16", d_model=16)]
    seen: list[Mapping[str, State]] = []
    rows = sweep(
        cells, train_cell, tmp_path / "slurm", SLURM, on_change=lambda s: seen.append(dict(s))
    )
    assert timeless(rows) == timeless(sweep(cells, train_cell, tmp_path / "here", HERE))
    assert seen[-1] == {"one": "done", "bad": "failed", "two, of d_model=16": "done"}
    failure = (tmp_path / "slurm" / "bad" / "failure.txt").read_text()
    assert failure.startswith("Traceback")
    assert "does not divide" in failure.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        # What Slurm does when a job's time is nearly over: submitit has it queued again.
        ("scancel", "--signal=USR2"),
        ("scancel", "--signal=USR1"),  # where a cluster is set to that
        # What it does in a preemption: SIGTERM, which submitit passes over, and soon the kill.
        ("scontrol", "requeue"),
    ],
    ids=["timeout", "another signal", "preemption"],
)
def test_a_job_that_is_stopped_is_queued_again_and_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: list[Row], command: tuple[str, str]
) -> None:
    before: list[str] = []

    def stop(job_id: str) -> None:
        before.extend(lines(tmp_path / "long"))
        subprocess.run([*command, job_id], check=True)

    stopping = once_it_trains(tmp_path / "long", stop)
    rows = sweep([long()], train_cell, tmp_path, SLURM, on_change=stopping)
    assert timeless(rows) == undisturbed
    (log,) = (tmp_path / "jobs").glob("*_log.out")
    assert log.read_text().count("Starting with") == 2
    # The speeds in there differ each time, so these steps were not taken again.
    assert lines(tmp_path / "long")[: len(before)] == before


def test_a_job_that_dies_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SQUEUE_S", 0.5)
    monkeypatch.setattr(jobs, "LOST_S", 2.0)

    def cancel(job_id: str) -> None:
        subprocess.run(["scancel", job_id], check=True)

    def at_once(states: Mapping[str, State]) -> None:
        if states["never begun"] == "running":
            cancel(job_of(tmp_path / "never begun"))

    cancelling = once_it_trains(tmp_path / "long", cancel)
    assert sweep([long(10**6)], train_cell, tmp_path, SLURM, on_change=cancelling) == []
    assert "CANCELLED" in (tmp_path / "long" / "failure.txt").read_text()
    assert sweep([cell("never begun")], train_cell, tmp_path, SLURM, on_change=at_once) == []
    assert "died" in (tmp_path / "never begun" / "failure.txt").read_text()


def test_a_sweep_that_was_interrupted_finds_its_jobs_again(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    def interrupt(job_id: str) -> None:
        raise KeyboardInterrupt

    interrupting = once_it_trains(tmp_path / "long", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep([long()], train_cell, tmp_path, SLURM, on_change=interrupting)
    assert job_of(tmp_path / "long"), "it goes on"
    assert timeless(sweep([long()], train_cell, tmp_path, SLURM)) == undisturbed
    assert len(list((tmp_path / "jobs").glob("*_submitted.pkl"))) == 1


def test_a_job_that_slurm_refuses_is_one_sentence(tmp_path: Path) -> None:
    launcher = Launcher(launcher="slurm", partition="nowhere")
    with pytest.raises(ITLError, match=r"Slurm refuses the job: .*[Ii]nvalid partition"):
        sweep([cell("one")], train_cell, tmp_path, launcher)


def test_the_command_line_runs_a_grid_on_slurm(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"database": world, "n_people": 4} | MODEL | {"n_unseen": 0, "d_model": "8,16"}
    axes = [f"{name}={value}" for name, value in settings.items()]
    options = ("--launcher", "slurm", "--partition", "debug", "--memory-gb", "1")
    status = main(["sweep", "memory", *axes, "seed=0:2", *options, "--out", str(tmp_path)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.out.splitlines()[-1].startswith("4 of 4 runs are done")
    # The two runs of each width are one job: they train as one model.
    assert captured.err.splitlines()[-1] == "4 done, 0 running, 0 waiting, 0 failed"
    assert len(list(tmp_path.glob("ensemble-of-2-*"))) == 2
