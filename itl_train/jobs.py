"""Where the jobs of a sweep are: processes of this machine, or Slurm."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from itl_env.errors import ITLError

SQUEUE_S = 10.0  # between two questions to Slurm, which serves others, too
FOREVER_MIN = 100 * 365 * 24 * 60
LOST_S = 60.0  # files of a job may be seen that long after its end: the nodes' disk is shared


class Processes:
    """Jobs that are processes of this machine; a sweep that ends takes them along."""

    def __init__(
        self, logs: Path, settings: Mapping[str, Any], gpus: Sequence[int] = (), share: int = 0
    ) -> None:
        """Settings are submitit's. gpus: of this machine, of which each job gets `share`.

        Only submitit's own local executor, and not its automatic one, can be told which.
        """
        import submitit

        self._executor = submitit.LocalExecutor(logs)
        # Nobody else waits for this machine, and submitit would give up after a few time-outs.
        self._executor.update_parameters(**settings, timeout_min=FOREVER_MIN)
        self._logs = logs
        self.most = len(gpus) // share if share else sys.maxsize  # jobs at a time
        self._free = list(gpus)
        self._share = share
        self._taken: dict[str, list[int]] = {}

    def find(self, folder: Path) -> Any:
        """None: what outlived a sweep that was killed is waited for by its successor."""
        return None

    def submit(self, work: Any, folder: Path) -> Any:
        """Start a job, on GPUs that no other job has."""
        taken, self._free = self._free[: self._share], self._free[self._share :]
        if taken:
            self._executor.update_parameters(visible_gpus=taken)
        with _stderr_into(self._logs / "controllers.log"):
            job = self._executor.submit(work)
        self._taken[job.job_id] = taken
        return job

    def over(self, job: Any, has_result: bool) -> bool:
        """Whether the job has ended, with a result or without."""
        if not job.done():
            return False
        self._free += self._taken.pop(job.job_id, [])
        return True

    def leave(self, job: Any) -> None:
        """Stop the job."""
        job.cancel()


@contextmanager
def _stderr_into(file: Path) -> Iterator[None]:
    """Let processes that are started here write their errors into a file.

    Those of submitit, one beside each job, meet Ctrl-C with a traceback.
    """
    before = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


class SlurmQueue:
    """Jobs of Slurm, as squeue lists them; they go on when the sweep is interrupted.

    submitit would ask sacct. Where Slurm keeps no accounts that fails, and a job that died would be
    waited for without end; elsewhere submitit asks every ten minutes only, and takes a suspended
    job for one that is over.
    """

    most = sys.maxsize  # jobs at a time

    def __init__(self, logs: Path, settings: Mapping[str, Any]) -> None:
        """Settings are submitit's. Raises ITLError where no Slurm answers."""
        import submitit

        # However often its time is over, a run goes on from where it was.
        limits = {"slurm_max_num_timeout": sys.maxsize}
        try:
            self._executor = submitit.AutoExecutor(logs, cluster="slurm", **limits)
        except RuntimeError as error:
            raise ITLError(f"There is no Slurm here ({error}); use --launcher local.") from None
        # For that, jobs must be queued again, which on some clusters has to be asked for.
        requeue = {"slurm_additional_parameters": {"requeue": True}}
        self._executor.update_parameters(**settings, **requeue)
        self._logs = logs
        self._before = _squeue()
        self._listed: dict[str, float] = {}
        self._asked = self._answered = -math.inf

    def find(self, folder: Path) -> Any:
        """The job that an earlier sweep left working in the folder, or None."""
        import submitit

        job_id = self._before.get(_comment(folder))
        return submitit.SlurmJob(self._logs, job_id) if job_id else None

    def submit(self, work: Any, folder: Path) -> Any:
        """Queue a job that works in the folder; raises ITLError if Slurm refuses it."""
        from submitit.core.utils import FailedJobError

        self._executor.update_parameters(slurm_comment=_comment(folder))
        try:
            return self._executor.submit(work)
        except FailedJobError as error:
            said = str(error).splitlines()[-1].removeprefix("sbatch: error: ")
            raise ITLError(f"Slurm refuses the job: {said}.") from None

    def over(self, job: Any, has_result: bool) -> bool:
        """Whether the job has a result, or is gone for so long that none is to be expected."""
        now = time.monotonic()
        self._listed.setdefault(job.job_id, now)
        if now - self._asked >= SQUEUE_S:
            self._asked = now
            with suppress(ITLError):  # a controller that is restarted will answer again
                self._listed |= dict.fromkeys(_squeue().values(), now)
                self._answered = now
        return has_result or self._answered - self._listed[job.job_id] >= LOST_S

    def leave(self, job: Any) -> None:
        """Let the job go on."""


def _comment(folder: Path) -> str:
    """What a job says of itself in the queue, by which the next sweep finds it."""
    return str(folder.resolve())


def _squeue() -> dict[str, str]:
    """The ids of the user's jobs that wait, run or are suspended, by their comments."""
    command = ["squeue", "--me", "--noheader", "--format=%A %k"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise ITLError(f"Slurm does not answer: {why}.") from None
    jobs = (line.partition(" ") for line in said.splitlines())
    return {comment: job_id for job_id, _, comment in jobs}
