"""Many runs: each a cell with a folder of its own, executed by submitit here or on Slurm.

A cell that has a row is never run again; one that failed keeps its traceback and is run again on
request. Rows that are known already, from a committed table say, count as done.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from itl_env.connection import holds_password, parse_url, public_url
from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json, write_text
from itl_train.jobs import Processes, SlurmQueue
from itl_train.run_folder import FAILURE

Row = dict[str, Any]
Work = Callable[[Mapping[str, Any], Path], Row]
State = Literal["done", "failed", "running", "waiting"]

ROW = "row.json"
LOCK, SECONDS = ".lock", ".seconds"  # dotted: not of the run whose folder it is
CELLS = "cells.json"  # the names of a folder's cells, for whoever asks how they stand
POLL_S = 0.5


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Cell:
    """One run: its name, which is also that of its folder, and its settings."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Launcher:
    """Where cells are executed."""

    launcher: Literal["local", "slurm", "here"] = "local"  # where runs are executed
    """local: processes of this machine; slurm: its jobs; here: this process, one by one."""
    workers: int = 0  # jobs at a time; 0 for as many as the cores allow (on Slurm: any number)
    threads: int = 1  # CPU threads of a job
    gpus: int = 0  # GPUs of a job
    partition: str = ""  # of Slurm; the default one if empty
    minutes: int = 24 * 60  # a job's time on Slurm; it is saved and queued again when that is over
    memory_gb: int = 8  # a job's memory on Slurm

    @property
    def at_a_time(self) -> int:
        """Jobs at a time; 0 for any number."""
        if self.launcher == "here":
            return 1
        if self.launcher == "slurm":
            return self.workers
        if self.gpus:
            return min(self.workers or sys.maxsize, max(1, len(_gpus_here()) // self.gpus))
        return self.workers or max(1, usable_cores() // self.threads)

    def __post_init__(self) -> None:
        for name in ("threads", "minutes", "memory_gb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("workers", "gpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")


def one_process(launcher: Launcher) -> None:
    """Raise ConfigError for more GPUs than the single process of a job can use."""
    if launcher.gpus > 1:
        raise ConfigError(f"gpus is {launcher.gpus}, but each run trains on one; leave it at 1.")


def for_device(launcher: Launcher, device: str) -> Launcher:
    """The same for runs on this device: on GPUs, unless it says how many, each job has its own.

    A GPU that is named, such as cuda:1, is shared by all jobs. Raises ConfigError for a device that
    this machine does not have, unless the jobs go to Slurm, whose nodes may have it.
    """
    if device != "cpu" and launcher.launcher != "slurm":
        from itl_train.team import check_device

        check_device(device)
    if launcher.gpus or launcher.launcher == "here" or device != "cuda":
        return launcher
    return replace(launcher, gpus=1)


def _gpus_here() -> list[int]:
    """The numbers of this machine's GPUs that this process may use.

    Raises ConfigError if the environment names them otherwise, which submitit cannot hand on.
    """
    import torch

    n = torch.cuda.device_count()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return list(range(n))
    try:
        return [int(number) for number in allowed.split(",")[:n]]
    except ValueError:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {allowed}; give the numbers of GPUs, such as 0,1, which jobs "
            "can share out."
        ) from None


def grid(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values, the last axis turning fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def grid_cells(
    axes: Mapping[str, Sequence[Any]],
    base: Mapping[str, Any],
    settings_of: Callable[..., Any],
    needed: Sequence[str] = ("database",),
) -> list[Cell]:
    """One cell for each combination of settings, named by those that differ.

    settings_of: makes the settings of a run, and raises ConfigError or TypeError where they do not
        fit. needed: settings that must be among the axes or in the base.

    Raises ConfigError if the settings of one contradict, or if there is none.
    """
    for key, listed in axes.items():
        if twice := [value for value in listed if list(listed).count(value) > 1]:
            raise ConfigError(f"The value {twice[0]!r} of {key} is given twice.")
    differing = [key for key, listed in axes.items() if len(listed) > 1]
    cells = []
    for values in grid(axes):
        settings = {**base, **values}
        for name in needed:
            if name not in settings:
                raise ConfigError(f"No {name} is named; write {name}=... among the axes.")
        url = parse_url(settings["database"])
        if holds_password(url):  # settings are written into files
            raise ConfigError(
                f"A sweep's database must be named without a password ({public_url(url)}); give it "
                "in PGPASSWORD or ~/.pgpass."
            )
        try:
            settings_of(**settings)
        except TypeError as error:  # an unknown name, or text where a number belongs
            raise ConfigError(f"The settings {values} do not fit: {error}.") from None
        name = ",".join(f"{key}={values[key]}".replace("/", "_") for key in differing)
        cells.append(Cell(name or "run", settings))
    if not cells:
        empty = next(key for key, listed in axes.items() if not listed)
        raise ConfigError(f"There is no value of {empty}, and so no run.")
    return cells


def list_cells(cells: Iterable[Cell], out: Path) -> None:
    """Write the names of a folder's cells, for whoever asks how they stand."""
    write_text(out / CELLS, json.dumps([cell.name for cell in cells], indent=1) + "\n")


class Job:
    """What a process does: one cell. submitit pickles it."""

    def __init__(self, work: Work, cell: Cell, folder: Path, threads: int) -> None:
        self.work, self.cell, self.folder, self.threads = work, cell, folder, threads

    def __call__(self) -> None:
        """Run the cell and leave its row, or the traceback of its failure."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A sweep that was killed may have left a job at work in the same folder: wait for it.
        with FileLock(self.folder / LOCK):
            if state(self.folder) == "waiting":
                self._run()

    def _run(self) -> None:
        from itl_train.threads import threads

        clock = self.folder / SECONDS
        before = float(clock.read_text()) if clock.exists() else 0.0
        _queue_again_on_either_signal()
        began = time.perf_counter()
        try:
            with threads(self.threads):
                row = self.work(self.cell.settings, self.folder)
        except Exception:
            write_text(self.folder / FAILURE, traceback.format_exc())
            return
        finally:
            seconds = round(before + time.perf_counter() - began, 1)
            write_text(clock, f"{seconds}\n")
        row = {"cell": self.cell.name, **row, "seconds": seconds}
        write_text(self.folder / ROW, json.dumps(row) + "\n")

    def checkpoint(self) -> Any:
        """What is queued again after a preemption: the same, which goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _queue_again_on_either_signal() -> None:
    """Let SIGUSR1, which some clusters send before the end, do what submitit does on SIGUSR2."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGUSR2)
        if callable(handler):
            signal.signal(signal.SIGUSR1, handler)


def digest(settings: Any) -> str:
    """A short hash of what JSON can hold, for the names of cells."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def state(folder: Path) -> State:
    """The state of a cell that no job is working on."""
    if (folder / ROW).exists():
        return "done"
    return "failed" if (folder / FAILURE).exists() else "waiting"


def read_row(folder: Path) -> Row:
    """The row of a cell that is done; raises ITLError if it is damaged."""
    row: Row = read_json(folder / ROW, "Remove it, and the same command makes it anew.")
    return row


def at_work(folder: Path) -> bool:
    """Whether a job is working on a cell, of whatever sweep."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def sweep(
    cells: Sequence[Cell],
    work: Work,
    out: Path,
    launcher: Launcher,
    *,
    known: Iterable[Row] = (),
    retry: bool = False,
    on_change: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> list[Row]:
    """Run all cells that have no row yet, and return the rows of all that are done, in order.

    work: a function of an importable module; its row holds JSON values.
    known: rows of earlier sweeps elsewhere, by their `cell`.
    retry: run failed cells again.
    on_change: told the state of every cell whenever one has changed.

    Ctrl-C and a request to end stop the jobs of this machine, which go on from their last
    checkpoints when the same sweep is run again, and leave those of Slurm, which it finds again.
    Raises ConfigError for two cells of one name, and ITLError where Slurm does not answer or
    refuses a job.
    """
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"Two cells of the sweep are called {twice!r}; a name must be unique.")
    rows: dict[str, Row] = {row["cell"]: row for row in known if row["cell"] in set(names)}
    states: dict[str, State] = {}
    for cell in cells:
        folder = out / cell.name
        states[cell.name] = "done" if cell.name in rows else state(folder)
        if retry and states[cell.name] == "failed":
            (folder / FAILURE).unlink()
            states[cell.name] = "waiting"
    waiting = [cell for cell in cells if states[cell.name] == "waiting"]
    on_change(states)
    if waiting:
        _run(waiting, work, out, launcher, states, on_change)
    for name in names:
        if name not in rows and states[name] == "done":
            rows[name] = read_row(out / name)
    return [rows[name] for name in names if name in rows]


def _run(
    waiting: list[Cell],
    work: Work,
    out: Path,
    launcher: Launcher,
    states: dict[str, State],
    on_change: Callable[[Mapping[str, State]], None],
) -> None:
    """Keep `launcher.workers` jobs going until no cell is left."""
    if launcher.launcher == "here":
        for cell in waiting:
            states[cell.name] = "running"
            on_change(states)
            Job(work, cell, out / cell.name, launcher.threads)()
            states[cell.name] = state(out / cell.name)
            on_change(states)
        return
    jobs = _jobs(launcher, out / "jobs")
    at_a_time = min(launcher.at_a_time or len(waiting), jobs.most)
    running = {cell.name: job for cell in waiting if (job := jobs.find(out / cell.name))}
    states.update(dict.fromkeys(running, "running"))
    queue = [cell for cell in reversed(waiting) if cell.name not in running]
    before = _end_on_request()
    try:
        while queue or running:
            while queue and len(running) < at_a_time:
                cell = queue[-1]
                job = Job(work, cell, out / cell.name, launcher.threads)
                try:
                    running[cell.name] = jobs.submit(job, job.folder)
                except ITLError:  # a limit of jobs, perhaps: there will be room when one has ended
                    if not running:
                        raise
                    break
                queue.pop()
                states[cell.name] = "running"
            on_change(states)
            ended: list[str] = []
            while running and not ended:
                time.sleep(POLL_S)
                for name, job in running.items():
                    if jobs.over(job, state(out / name) != "waiting"):
                        ended.append(name)
            for name in ended:
                job = running.pop(name)
                states[name] = state(out / name)
                if states[name] == "waiting":  # it left neither a row nor a traceback
                    states[name] = "failed"
                    said = job.stderr() or "nothing"
                    (out / name).mkdir(parents=True, exist_ok=True)  # it may not even have begun
                    write_text(out / name / FAILURE, f"The job {job.job_id} died; it said:\n{said}")
            on_change(states)
    except BaseException:
        for job in running.values():
            jobs.leave(job)
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _end_on_request() -> Any:
    """Let SIGTERM end the sweep as Ctrl-C does, so that it takes its jobs along.

    Returns the handler before, None where this thread cannot handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return None

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, end)


def _jobs(launcher: Launcher, logs: Path) -> Processes | SlurmQueue:
    """Where jobs are executed."""
    settings: dict[str, Any] = {"gpus_per_node": launcher.gpus}
    if launcher.launcher == "local":
        if not launcher.gpus:
            return Processes(logs, settings)
        here = _gpus_here()
        if launcher.gpus > len(here):
            raise ConfigError(f"gpus is {launcher.gpus}, but this machine has {len(here)}.")
        return Processes(logs, settings, here, launcher.gpus)
    settings |= {
        "timeout_min": launcher.minutes,
        "cpus_per_task": launcher.threads,
        "mem_gb": launcher.memory_gb,
    }
    if launcher.partition:
        settings["slurm_partition"] = launcher.partition
    return SlurmQueue(logs, settings)
