"""Train a NanoLlama to know facts (in-weight) or to look them up (in-tool).

    itl train memory --database sqlite:///facts.db --mode in-tool --out runs/in-tool

The training data are the expert's episodes in the very task that evaluates the model. A run is a
folder that can be killed at any moment; started again, it goes on from its last checkpoint and ends
with the same bits as an unbroken run on the same machine.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from itl_agents.agent import Agent, rollout
from itl_agents.evaluate import measure_recall, one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaAgent
from itl_agents.scripted import ExpertAgent
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_train.batches import BatchPlan, Dialogues
from itl_train.checkpoint import (
    keep_last,
    load_model_and_state,
    newest,
    save_checkpoint,
    save_model_and_tokenizer,
)
from itl_train.interrupt import deferred_interrupt
from itl_train.memory_config import MemoryConfig
from itl_train.run_folder import RunFolder, has_begun
from itl_train.step import learning_rates, make_optimizers, train_step

__all__ = [
    "MemoryConfig",
    "MemoryRun",
    "Tasks",
    "expert_dialogues",
    "train_memory",
    "training_dialogues",
]


@dataclass(frozen=True)
class Tasks:
    """The two tasks of a run: the people it trains on, and others of the same database."""

    seen: RecallTask
    unseen: RecallTask | None

    @classmethod
    def open(cls, config: MemoryConfig) -> "Tasks":
        """Open the database; raises ConfigError if it holds too few people."""
        database = FactDatabase(config.database, table=config.table, key=config.key)
        last = config.n_people + config.n_unseen
        if len(database) < last:
            raise ConfigError(
                f"{database.place} holds {len(database):,} people, fewer than {last:,}: "
                f"{config.n_people:,} to train on (n_people) and {config.n_unseen:,} unseen ones "
                "(n_unseen); lower one of them."
            )
        seen = config.task(database, slice(0, config.n_people))
        unseen = config.task(database, slice(config.n_people, last)) if config.n_unseen else None
        return cls(seen, unseen)

    def ask(self, agent: Agent, n_people: int) -> dict[str, Any]:
        """Recall on training people and on unseen ones, one question each, for a metrics row."""
        row: dict[str, Any] = {}
        for name, task in (("seen", self.seen), ("unseen", self.unseen)):
            if task is not None:
                count = measure_recall(agent, task, one_question_each(task, n_people))
                row[f"recall_{name}"] = count.recall
                row[f"asked_{name}"] = count.asked
                row[f"right_{name}"] = count.right
        return row


def recorded(config: MemoryConfig, tasks: Tasks) -> dict[str, Any]:
    """The settings as they may be written down: the database's address without a password."""
    return {**dataclasses.asdict(config), "database": tasks.seen.database.url}


def expert_dialogues(task: RecallTask, tokenizer: ByteTokenizer) -> Dialogues:
    """The expert's episodes about every fact of the task, rendered."""
    return Dialogues.render(rollout(ExpertAgent(task), task, task.facts(), lanes=1024), tokenizer)


def training_dialogues(
    config: MemoryConfig, task: RecallTask, tokenizer: ByteTokenizer
) -> Dialogues:
    """`expert_dialogues` on the run's device; raises ConfigError if the model is too short."""
    dialogues = expert_dialogues(task, tokenizer)
    longest = int(dialogues.lengths.max())
    if longest > config.max_length:
        raise ConfigError(
            f"max_length is {config.max_length}, shorter than the longest dialogue of {longest} "
            "tokens; raise it."
        )
    return dialogues.to(config.device)


class MemoryRun:
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    def __init__(self, config: MemoryConfig, out: Path) -> None:
        """Open or begin the run; nothing is written if the database or config is unfit.

        Raises ConfigError if the folder holds a run of another configuration.
        """
        try:
            torch.empty(0, device=config.device)
        except (RuntimeError, AssertionError) as error:  # an unknown one, or one that is not here
            raise ConfigError(
                f"Cannot train on device {config.device!r}: {str(error).splitlines()[0]}."
            ) from None
        self.config = config
        self.tasks = Tasks.open(config)
        self.tokenizer = ByteTokenizer()
        self._dialogues: Dialogues | None = None
        settings = recorded(config, self.tasks)
        if not has_begun(out, settings):
            self._render()
        self.folder = RunFolder.open(out, settings)
        self.step = self._saved_step = 0
        self.model = NanoLlama(
            config.model_config(),
            seed=streams.key(config.seed, "initialisation") % 2**63,
            zero_residual=config.zero_residual,
        )
        self._loss_sum, self._loss_steps = 0.0, 0
        self.n_threads = config.n_threads or min(4, torch.get_num_threads())
        self._digest: str | None = None
        state = self._restore()
        keep_last(self.folder.checkpoints, config.keep_checkpoints)  # a kill may have left more
        self.model.to(config.device)
        self.optimizers = make_optimizers(self.model, config)
        if state is not None:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.folder.forget_metrics_after(self.step)
        self._last_evaluation = self.folder.last_evaluation()

    def _render(self) -> Dialogues:
        """The training dialogues, rendered once; see `training_dialogues`."""
        if self._dialogues is None:
            self._dialogues = training_dialogues(self.config, self.tasks.seen, self.tokenizer)
        return self._dialogues

    def _restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, if there is any."""
        state = newest(self.folder.checkpoints, self.folder.warn, load_model_and_state)
        if state is not None:
            self.model = state["model"]
            self.step = self._saved_step = state["step"]
            # Sums depend on how many threads share them: the same bits need the same number.
            self.n_threads = state["n_threads"]
            self._digest = state["dialogues"]
            self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
        return state

    def agent(self) -> NanoLlamaAgent:
        """The model as it is now, playing greedily."""
        return NanoLlamaAgent(self.model, self.tokenizer, name=f"nanollama {self.config.mode}")

    def train(self, on_metrics: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C, and the signals by which a scheduler ends a job, let the step finish and a
        checkpoint be saved before they have their effect. Raises ITLError at a loss that is not
        finite, naming the step.
        """
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.n_threads)
        try:
            self._train(on_metrics)
            last = self._last_evaluation
            if last is None or last["step"] != self.step:
                last = self._evaluate(on_metrics)
        finally:
            torch.set_num_threads(threads_before)
        return last

    def _train(self, on_metrics: Callable[[dict[str, Any]], None] | None) -> None:
        """Take the steps that are left."""
        if self.finished:
            return
        dialogues = self._render()
        digest = dialogues.digest()
        if self._digest not in (None, digest):
            raise ConfigError(
                f"{self.tasks.seen.database.place} has changed since the run in {self.folder.path} "
                "began; begin another run, or bring the old database back."
            )
        self._digest = digest
        config = self.config
        plan = BatchPlan(dialogues, config.batch_size, config.seed, config.pad_to)
        while not self.finished:
            with deferred_interrupt() as interrupted:
                while not self.finished and not interrupted():
                    self._advance(plan, on_metrics)
                self._save()

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the recall to stop at is reached."""
        if self.step == self.config.n_steps:
            return True
        last, stop_at = self._last_evaluation, self.config.stop_at
        return bool(stop_at and last and last["recall_seen"] >= stop_at)

    def _advance(
        self, plan: BatchPlan, on_metrics: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """One optimizer step, and what is due after it."""
        config = self.config
        began = time.perf_counter()
        batch = plan.batch(self.step)
        rates = learning_rates(config, self.step)
        dtype = getattr(torch, config.dtype)
        value, norm = train_step(
            self.model, self.optimizers, rates, batch, clip=config.clip, dtype=dtype
        )
        if not math.isfinite(value):
            raise ITLError(
                f"The loss is {value} at step {self.step}; lower lr or muon_lr. "
                f"The last checkpoint in {self.folder.checkpoints} is intact."
            )
        self.step += 1
        self._loss_sum += value
        self._loss_steps += 1
        seconds = time.perf_counter() - began
        if self.step % config.log_every == 0 or self.step == config.n_steps:
            row = {
                "step": self.step,
                "loss": self._loss_sum / self._loss_steps,
                "gradient_norm": norm,
                "lr": rates[0],
                "tokens_per_s": batch.n_tokens / seconds,
                "exposures": self.step * config.batch_size / len(plan.dialogues),
            }
            self._loss_sum, self._loss_steps = 0.0, 0
            self.folder.log(row, on_metrics)
        if self.step % config.evaluate_every == 0 and self.step < config.n_steps:
            self._evaluate(on_metrics)
        if self.step % config.checkpoint_every == 0:
            self._save()

    def _evaluate(self, on_metrics: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        """Recall on training people and on unseen ones, through the task."""
        row = {"step": self.step, **self.tasks.ask(self.agent(), self.config.n_evaluate)}
        self.folder.log(row, on_metrics)
        self._last_evaluation = row
        return row

    def _save(self) -> None:
        """Write a checkpoint unless this step has one.

        Raises ITLError instead of keeping weights that are not finite.
        """
        if self.step == self._saved_step:
            return
        if not all(bool(torch.isfinite(weights).all()) for weights in self.model.parameters()):
            raise ITLError(
                f"The weights are not finite after step {self.step}; lower lr or muon_lr. "
                f"The last checkpoint in {self.folder.checkpoints} is intact."
            )
        state = {
            "step": self.step,
            "n_threads": self.n_threads,
            "dialogues": self._digest,
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        folder = self.folder.checkpoints
        write = partial(save_model_and_tokenizer, self.model, self.tokenizer)
        save_checkpoint(folder, self.step, state, write)
        self._saved_step = self.step
        keep_last(folder, self.config.keep_checkpoints)


def train_memory(
    config: MemoryConfig,
    out: str | Path,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train (or go on training) the run in `out`; returns its last evaluation.

    See `MemoryRun` for what is raised.
    """
    return MemoryRun(config, Path(out)).train(on_metrics)
