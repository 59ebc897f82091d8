"""A training run of a NanoLlama, whatever it learns: `itl_train.memory`, `itl_train.tool_calling`.

A run is a folder that can be killed at any moment; started again, it goes on from its last
checkpoint and, on the CPU of the same machine, ends with the same bits as an unbroken run.
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from itl_agents.agent import Agent
from itl_agents.nanollama import NanoLlama, NanoLlamaAgent, NanoTokenizer
from itl_env.errors import ConfigError, ITLError
from itl_train.batches import BatchPlan
from itl_train.checkpoint import (
    check_finite,
    keep_last,
    load_model_and_state,
    newest,
    save_checkpoint,
    save_model_and_tokenizer,
    what_is_left,
)
from itl_train.interrupt import deferred_interrupt
from itl_train.nano_config import NanoConfig
from itl_train.run_folder import RunFolder, has_begun
from itl_train.step import check_compiler, compiled, learning_rates, make_optimizers, train_step
from itl_train.team import Team, check_device
from itl_train.threads import threads
from itl_train.watch import Watch, check_trackers
from itl_train.watch_config import UNWATCHED, WatchConfig

OnMetrics = Callable[[dict[str, Any]], None]


class Subject(Protocol):
    """What a run learns: dialogues to train on, and questions to ask.

    label: of the agent's name. place: where the data are, for errors.
    max_new_tokens: of a turn when it is asked.
    """

    @property
    def label(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...

    def tokenizer(self) -> NanoTokenizer:
        """The one that the settings name."""
        ...

    def plan(self, tokenizer: NanoTokenizer, share: tuple[int, int], device: str) -> BatchPlan:
        """The batches; share: see `BatchPlan`."""
        ...

    def exposures(self, plan: BatchPlan, step: int) -> float:
        """How often each fact or sample has been seen before `step`, on average."""
        ...

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """Recall on at most n of what is trained on, and of what is not, for a metrics row."""
        ...


class NanoRun:
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    def __init__(
        self,
        config: NanoConfig,
        subject: Subject,
        settings: dict[str, Any],
        out: Path,
        watch: WatchConfig = UNWATCHED,
    ) -> None:
        """Open or begin the run; nothing is written if the config is unfit.

        subject: what is learnt. settings: the configuration as it may be written down.
        watch: how it is watched, which may change from one invocation to the next.

        Raises ConfigError if the folder holds a run of another configuration.
        """
        self.config = config
        self.subject = subject
        self.watch_config = watch
        check_device(config.device)
        check_compiler(config)
        check_trackers(watch.trackers)
        self.team = Team.join(config.device)
        self.device = self.team.device or config.device
        self.tokenizer = subject.tokenizer()
        self._settings = settings
        self.folder = RunFolder(out)
        if self.team.first:
            if not has_begun(out, self._settings):
                _ = self.plan  # which may find what is wrong
            RunFolder.open(out, self._settings)
        self.team.wait()
        self.step = self._saved_step = 0
        self.model = NanoLlama(
            config.model_config(self.tokenizer.vocabulary_size),
            seed=config.initial_seed,
            zero_residual=config.zero_residual,
        )
        self._loss_sum, self._loss_steps = 0.0, 0
        self.n_threads = config.n_threads or min(4, torch.get_num_threads())
        self._digest: str | None = None
        with self._alone():
            state = self._restore()
        self.model.to(self.device)
        self._trained = compiled(self.model) if config.compile else self.model
        self.optimizers = make_optimizers(self.model, config)
        if state is not None:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self._last_evaluation = self.folder.last_evaluation()

    @cached_property
    def plan(self) -> BatchPlan:
        """The batches, whose dialogues are rendered when they are first asked for."""
        share = (self.team.rank, self.team.n)
        return self.subject.plan(self.tokenizer, share, self.device)

    def _restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, if there is any.

        The first process clears away what is broken or too new before the others look.
        """
        if not self.team.first:
            self.team.wait()
        state = newest(self.folder.checkpoints, self.folder.warn, load_model_and_state)
        if state is not None:
            self.model = state["model"]
            self.step = self._saved_step = state["step"]
            # Sums depend on how many threads share them: the same bits need the same number.
            self.n_threads = state["n_threads"]
            self._digest = state["dialogues"]
            self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
        if self.team.first:
            # A kill may have left more.
            keep_last(self.folder.checkpoints, self.config.keep_checkpoints)
            self.folder.forget_metrics_after(self.step)
            self.team.wait()
        return state

    def _alone(self) -> AbstractContextManager[None]:
        """See `RunFolder.alone`; the first process speaks for all."""
        return self.folder.alone() if self.team.first else nullcontext()

    def agent(self) -> NanoLlamaAgent:
        """The model as it is now, playing greedily."""
        return NanoLlamaAgent(
            self.model,
            self.tokenizer,
            name=f"nanollama {self.subject.label}",
            max_new_tokens=self.subject.max_new_tokens,
        )

    def train(self, on_metrics: OnMetrics | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C, and the signals by which a scheduler ends a job, let the step finish and a
        checkpoint be saved before they have their effect. Raises ITLError at a loss that is not
        finite, naming the step.
        """
        with threads(self.n_threads), self._alone():
            if not self.finished:
                self._train(on_metrics)
            return self._evaluated or self._evaluate(on_metrics)

    def _train(self, on_metrics: OnMetrics | None) -> None:
        """Take the steps that are left, of which there is at least one."""
        plan = self.plan
        digest = plan.dialogues.digest()
        if self._digest not in (None, digest):
            raise ConfigError(
                f"{self.subject.place} or another source has changed since the run in "
                f"{self.folder.path} began; begin another run, or bring the old one back."
            )
        self._digest = digest
        dtype = getattr(torch, self.config.dtype)
        own = self.watch_config
        if not self.team.first:  # which alone writes
            own = dataclasses.replace(own, profile=0, trackers=())
        with Watch(own, self.model, dtype, self.folder.path, self._settings, self.team.n) as watch:
            while not self.finished:
                with deferred_interrupt() as interrupted:
                    stop = False
                    while not self.finished and not stop:
                        self._advance(plan, watch, on_metrics)
                        stop = self.team.any(interrupted())
                    self._save()
            if not self._evaluated:
                watch.track(self._evaluate(on_metrics))

    @property
    def _evaluated(self) -> dict[str, Any] | None:
        """The evaluation of the model as it is now, if there has been one."""
        last = self._last_evaluation
        return last if last is not None and last["step"] == self.step else None

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the recall to stop at is reached."""
        return self.step == self.config.n_steps or self.config.is_enough(self._last_evaluation)

    def _advance(self, plan: BatchPlan, watch: Watch, on_metrics: OnMetrics | None) -> None:
        """One optimizer step, and what is due after it."""
        config = self.config
        due = (self.step + 1) % config.log_every == 0 or self.step + 1 == config.n_steps
        began = watch.begin_step()
        batch = plan.batch(self.step)
        rates = learning_rates(config, self.step)
        probe = watch.probe(self.step)
        stepped = train_step(
            self.model if probe is not None else self._trained,
            self.optimizers,
            rates,
            batch,
            clip=config.clip,
            dtype=getattr(torch, config.dtype),
            team=self.team,
            measure=due,
            probe=probe,
        )
        if not math.isfinite(stepped.loss):
            raise ITLError(
                f"The loss is {stepped.loss} at step {self.step}; lower lr or muon_lr. "
                f"{what_is_left(self.folder.checkpoints)}"
            )
        self.step += 1
        self._loss_sum += stepped.loss
        self._loss_steps += 1
        watch.end_step(began, batch)
        if due:
            row = {
                "step": self.step,
                "loss": self._loss_sum / self._loss_steps,
                "gradient_norm": stepped.gradient_norm,
                "lr": rates[0],
                "exposures": self.subject.exposures(plan, self.step),
                **watch.costs(),
            }
            self._loss_sum, self._loss_steps = 0.0, 0
            self._log(row, on_metrics)
            watch.track(row)
        if stepped.probed is not None:
            row = {"step": self.step, **stepped.probed}
            self._log(row, on_metrics)
            watch.track(row)
        if self.step % config.evaluate_every == 0 and self.step < config.n_steps:
            watch.track(self._evaluate(on_metrics))
        if self.step % config.checkpoint_every == 0:
            self._save()

    def _log(self, row: dict[str, Any], on_metrics: OnMetrics | None) -> None:
        if self.team.first:
            self.folder.log(row, on_metrics)

    def _evaluate(self, on_metrics: OnMetrics | None) -> dict[str, Any]:
        """Recall on what it is trained on and on the rest, through the task."""
        row: dict[str, Any] = {"step": self.step}
        if self.team.first:
            row |= self.subject.ask(self.agent(), self.config.n_evaluate)
            self.folder.log(row, on_metrics)
        # All must know whether it is enough.
        which = f"recall_{self.config.stop_on}"
        row[which] = self.team.tell(row.get(which, 0.0))
        self._last_evaluation = row
        return row

    def _save(self) -> None:
        """Write a checkpoint unless this step has one.

        Raises ITLError instead of keeping weights that are not finite.
        """
        if self.step == self._saved_step:
            return
        check_finite(self.model, self.step, self.folder.checkpoints)
        state = {
            "step": self.step,
            "n_threads": self.n_threads,
            "dialogues": self._digest,
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        folder = self.folder.checkpoints
        if self.team.first:
            write = partial(save_model_and_tokenizer, self.model, self.tokenizer)
            save_checkpoint(folder, self.step, state, write)
            keep_last(folder, self.config.keep_checkpoints)
        self._saved_step = self.step
        self.team.wait()
