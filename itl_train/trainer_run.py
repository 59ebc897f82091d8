"""A run of one of TRL's trainers in a folder: what fine-tuning and GRPO have in common.

It can be killed at any moment; started again, it goes on from its last checkpoint.
"""

import math
import shutil
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from itl_agents.device_memory import is_out_of_memory
from itl_env.errors import ITLError
from itl_train.checkpoint import (
    adopt,
    check_finite,
    checkpoints,
    drop_optimizers,
    has_optimizer,
    keep_last,
    newest,
    what_is_left,
)
from itl_train.interrupt import deferred_interrupt
from itl_train.run_folder import RunFolder
from itl_train.team import Team
from itl_train.threads import threads

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a Llama's blocks, each of which gets an adapter. Of a model that has not all of
them, every linear layer but the head does."""

OnMetrics = Callable[[dict[str, Any]], None]


class AdapterSettings(Protocol):
    """Settings of an adapter."""

    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> int: ...


class TrainerRun(ABC):
    """`config.yaml`, `versions.json`, `metrics.jsonl` and `checkpoints/` of a run.

    trainer: TRL's; made by a subclass, as all that is declared here.
    remedy: what helps where memory is full, for errors.
    """

    folder: RunFolder
    team: Team
    trainer: Any
    n_threads: int
    keep_checkpoints: int
    resumed_from: Path | None
    last_evaluation: dict[str, Any] | None
    interrupted: Callable[[], bool]
    on_metrics: OnMetrics | None = None
    remedy = "lower at_once"

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    @abstractmethod
    def evaluation_steps(self) -> int:
        """Steps between evaluations; the last step is always evaluated."""

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, Any]:
        """A row for `metrics.jsonl`, which is also kept as the last evaluation."""

    @abstractmethod
    def row(self, logs: dict[str, Any], step: int, seconds: float) -> dict[str, Any]:
        """A row for `metrics.jsonl`, of what the trainer tells of its steps since the last one.

        seconds: that they took, without evaluations.
        """

    def is_enough(self) -> bool:
        """Whether the last evaluation ends the run before all steps are taken."""
        return False

    # Hooks, which a run need not have.

    def before(self, resumed_from: Path | None) -> None:  # noqa: B027
        """Called before the trainer begins, or goes on from a checkpoint."""

    def written(self, checkpoint: Path) -> None:  # noqa: B027
        """Called when the trainer has written a checkpoint, which is then sealed."""

    def told(self, row: dict[str, Any]) -> None:  # noqa: B027
        """Called with each row when it is logged."""

    # -- the folder ------------------------------------------------------------------------------

    def restore(self) -> Path | None:
        """The newest whole checkpoint; what is broken or too new is cleared away."""
        found = None
        if self.team.first:
            with self.folder.alone():
                found = newest(self.folder.checkpoints, self.folder.warn, lambda path: path)
                if found is not None and not has_optimizer(found):
                    self.folder.warn(
                        f"{found} holds no optimizer any more; training goes on with a new one, "
                        "and comes to other weights than without an interruption."
                    )
                self.folder.forget_metrics_after(_step_of(found))
                self.keep()
        self.team.wait()
        if not self.team.first:
            found = newest(self.folder.checkpoints, lambda message: None, lambda path: path)
        return found

    def keep(self) -> None:
        """Remove checkpoints that are not to be kept."""
        keep_last(self.folder.checkpoints, self.keep_checkpoints or None)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the metrics."""
        if self.team.first:
            self.folder.log(row, self.on_metrics)

    # -- training --------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return max(int(self.trainer.state.global_step), _step_of(self.resumed_from))

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the last evaluation is enough."""
        return self.step >= self.n_steps or self.is_enough()

    def train(self, on_metrics: OnMetrics | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C, and the signals by which a scheduler ends a job, let the step finish and a
        checkpoint be saved before they have their effect. Raises ITLError at a loss that is not
        finite, naming the step.
        """
        self.on_metrics = on_metrics
        with threads(self.n_threads), self._alone(), warnings.catch_warnings():
            # PEFT looks for the settings of a base that is a single file.
            warnings.filterwarnings("ignore", message="Could not find a config file")
            while not self.finished:
                with deferred_interrupt() as self.interrupted, self._told():
                    path = self.resumed_from
                    self.before(path)
                    self.trainer.train(resume_from_checkpoint=None if path is None else str(path))
                self.resumed_from = checkpoints(self.folder.checkpoints)[-1]
            last = self.last_evaluation
            if last is None or last["step"] != self.step:
                last = self.evaluate(self.step)
                self.log(last)
            return last

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a sentence that memory or the disk is full."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            left = what_is_left(self.folder.checkpoints)
            if is_out_of_memory(error):
                raise ITLError(
                    f"Memory is full after step {self.step}; {self.remedy}. {left}"
                ) from error
            if shutil.disk_usage(self.folder.path).free < 2**20:
                raise ITLError(f"The disk is full after step {self.step}. {left}") from error
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """See `RunFolder.alone`; the first process speaks for all."""
        if not self.team.first:
            yield
            return
        with self.folder.alone():
            yield


class Watcher(TrainerCallback):
    """Writes what a run's folder holds, asks questions, and stops where that is due."""

    def __init__(self, run: TrainerRun) -> None:
        self.run: TrainerRun = weakref.proxy(run)  # so that who lets go of the run frees its model
        self._began, self._asking = 0.0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:  # the summary at the end
            return
        run, now = self.run, time.perf_counter()
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise ITLError(
                f"The loss is {loss} at step {state.global_step}; lower lr. "
                f"{what_is_left(run.folder.checkpoints)}"
            )
        seconds = max(now - self._began - self._asking, 1e-9)  # of training alone
        row = {
            "step": state.global_step,
            "loss": loss,
            "gradient_norm": float(logs.get("grad_norm", math.nan)),
            **run.row(logs, state.global_step, seconds),
        }
        run.log(row)
        run.told(row)
        self._began, self._asking = now, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run, step = self.run, state.global_step
        if step % run.evaluation_steps == 0 and step < run.n_steps:
            began = time.perf_counter()
            run.log(run.evaluate(step))
            self._asking += time.perf_counter() - began
        ends = step == run.n_steps or run.is_enough()
        if ends or run.team.any(run.interrupted()):
            control.should_training_stop = True
            control.should_save = True
        if ends:
            control.should_log = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run, folder = self.run, self.run.folder.checkpoints
        run.team.wait()  # each process writes a file of its own
        if run.team.first:
            check_finite(run.trainer.model, state.global_step, folder)
            run.written(folder / f"checkpoint-{state.global_step}")
            adopt(folder, state.global_step)
            drop_optimizers(folder)
            run.keep()
        run.team.wait()


def adapter(settings: AdapterSettings, model: Any, dropout: float = 0.0) -> Any:
    """PEFT's configuration of the adapter of a model; None to train all weights."""
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    is_llama = there.issuperset(PROJECTIONS)
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=dropout,
        target_modules=list(PROJECTIONS) if is_llama else "all-linear",
        task_type="CAUSAL_LM",
    )


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """The model without dropout, for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
