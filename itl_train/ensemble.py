"""Runs of one shape trained as one model whose weights carry a leading member axis.

Members differ in their seed, their world and their learning rates, and stop on their own. Each is
trained as it would be alone: its batches are those of the single run of the same settings, and it
ends with the same weights up to rounding.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itl_agents.nanollama import NanoLlama, NanoLlamaAgent
from itl_env.errors import ConfigError, ITLError
from itl_train.batches import BatchPlan, stacked
from itl_train.checkpoint import (
    check_finite,
    checkpoints,
    keep_last,
    load_state,
    newest,
    save_checkpoint,
    save_model_and_tokenizer,
    what_is_left,
)
from itl_train.interrupt import deferred_interrupt
from itl_train.memory import Tasks, recorded
from itl_train.memory_config import MemoryConfig
from itl_train.nano_run import OnMetrics
from itl_train.run_folder import RunFolder
from itl_train.sources import exposures, open_plan
from itl_train.step import check_compiler, compiled, ensemble_step, learning_rates, make_optimizers
from itl_train.team import check_device
from itl_train.threads import threads
from itl_train.watch import Watch
from itl_train.watch_config import UNWATCHED

OWN = ("database", "seed", "lr", "muon_lr", "n_steps")
"""The settings in which members may differ."""


class EnsembleRun:
    """An ensemble in its folder, which can be killed at any moment and goes on to the same bits.

    Every member ends in a folder of its own, `member-<i>`, with its settings, its evaluation and
    its model, which can be asked like that of any run.
    """

    def __init__(self, configs: Sequence[MemoryConfig], out: Path) -> None:
        """Open or begin it. Raises ConfigError for members that do not fit together."""
        self.configs = list(configs)
        self.config = _common(self.configs)
        check_device(self.config.device)
        check_compiler(self.config)
        self.tasks = [Tasks.open(config) for config in self.configs]
        self.tokenizer = self.tasks[0].tokenizer()
        by_database: dict[str, BatchPlan] = {}  # whose dialogues its members share
        for config, tasks in zip(self.configs, self.tasks, strict=True):
            if config.database not in by_database:
                plan = open_plan(config, tasks.seen_in, self.tokenizer)
                by_database[config.database] = plan
        self.plans = [by_database[c.database].with_seed(c.seed) for c in self.configs]
        settings = [recorded(config) for config in self.configs]
        self.folder = RunFolder.open(out, {"members": settings})
        self.members = [RunFolder.open(out / f"member-{i}", own) for i, own in enumerate(settings)]
        self.model = NanoLlama(
            self.config.model_config(self.tokenizer.vocabulary_size),
            [config.initial_seed for config in self.configs],
            zero_residual=self.config.zero_residual,
        ).to(self.config.device)
        self._trained = compiled(self.model) if self.config.compile else self.model
        self.optimizers = make_optimizers(self.model, self.config)
        self.step = self._saved_step = 0
        # Of each member, since all losses were last logged.
        self._loss_sums = torch.zeros(len(self.configs), dtype=torch.float64)
        self._loss_steps = 0
        self.n_threads = self.config.n_threads or min(4, torch.get_num_threads())
        digest = " ".join(plan.dialogues.digest() for plan in by_database.values())
        with self.folder.alone():
            found = newest(self.folder.checkpoints, self.folder.warn, load_state)
            for folder in (self.folder, *self.members):
                folder.forget_metrics_after(0 if found is None else found["step"])
        if found is not None:
            self.step = self._saved_step = found["step"]
            # Sums depend on how many threads share them: the same bits need the same number.
            self.n_threads = found["n_threads"]
            self._loss_sums, self._loss_steps = found["loss_sums"], found["loss_steps"]
            if found["dialogues"] != digest:
                raise ConfigError(
                    f"A database or another source has changed since the ensemble in {out} began; "
                    "begin another, or bring the old one back."
                )
            self.model.load_state_dict(found["model"])
            for optimizer, saved in zip(self.optimizers, found["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self._dialogues = digest
        self._last = [folder.last_evaluation() for folder in self.members]

    def agent(self, index: int) -> NanoLlamaAgent:
        """A member as it is now, playing greedily."""
        return NanoLlamaAgent(self.model.member(index), self.tokenizer, name=f"member {index}")

    def train(self, on_metrics: OnMetrics | None = None) -> list[dict[str, Any]]:
        """Train to the end, write the members' folders, and return each one's evaluation.

        on_metrics: called with every line of the ensemble's own `metrics.jsonl`: the mean of the
            losses, and what all members together cost. Each member's lines are in its folder.

        See `MemoryRun.train` for Ctrl-C and other signals.
        """
        dtype = getattr(torch, self.config.dtype)
        watch = Watch(UNWATCHED, self.model, dtype, self.folder.path, {})
        with threads(self.n_threads), self.folder.alone():
            while not self.finished:
                with deferred_interrupt() as interrupted:
                    while not self.finished and not interrupted():
                        self._advance(watch, on_metrics)
                    self._save()
            return [self._finish(index) for index in range(len(self.configs))]

    @property
    def finished(self) -> bool:
        """Whether every member has ended."""
        return all(self._end(index) is not None for index in range(len(self.configs)))

    def _end(self, index: int) -> int | None:
        """The step at which a member ended: its last one, or that of a recall that was enough."""
        config, last = self.configs[index], self._last[index]
        if last is not None and config.is_enough(last):
            return int(last["step"])
        return config.n_steps if self.step >= config.n_steps else None

    def _advance(self, watch: Watch, on_metrics: OnMetrics | None) -> None:
        """One step of every member that has not ended, and what is due after it."""
        config = self.config
        going = [index for index in range(len(self.configs)) if self._end(index) is None]
        after = self.step + 1
        due = [
            index
            for index in going
            if after % config.log_every == 0 or after == self.configs[index].n_steps
        ]
        began = watch.begin_step()
        batch = stacked([plan.batch(self.step) for plan in self.plans])
        rates = [
            learning_rates(own, self.step) if index in going else (0.0, 0.0)
            for index, own in enumerate(self.configs)
        ]
        losses, norms = ensemble_step(
            self._trained,
            self.optimizers,
            list(torch.tensor(rates).T.to(config.device)),
            batch,
            clip=config.clip,
            dtype=getattr(torch, config.dtype),
            measure=bool(due),
        )
        if not (finite := losses.isfinite()).all():
            member = int(finite.logical_not().nonzero()[0])
            raise ITLError(
                f"The loss of member {member} is {float(losses[member])} at step {self.step}; "
                f"lower its lr or muon_lr. {what_is_left(self.folder.checkpoints)}"
            )
        self.step = after
        self._loss_sums += losses.cpu()
        self._loss_steps += 1
        watch.end_step(began, batch)
        if due:
            assert norms is not None
            self._log(due, rates, norms.tolist(), watch, on_metrics)
        if self.step % config.evaluate_every == 0:
            for index in going:
                if self.step < self.configs[index].n_steps:
                    self._evaluate(index, self.step)
        if self.step % config.checkpoint_every == 0:
            self._save()

    def _log(
        self,
        due: Sequence[int],
        rates: Sequence[tuple[float, float]],
        norms: Sequence[float],
        watch: Watch,
        on_metrics: OnMetrics | None,
    ) -> None:
        """A line in the folder of each member that is due, as its run alone has it; and in ours."""
        losses = (self._loss_sums / self._loss_steps).tolist()
        for index in due:
            row = {
                "step": self.step,
                "loss": losses[index],
                "gradient_norm": norms[index],
                "lr": rates[index][0],
                "exposures": exposures(self.configs[index], self.plans[index], self.step),
            }
            self.members[index].log(row)
        mean = sum(losses[index] for index in due) / len(due)
        self.folder.log({"step": self.step, "loss": mean, **watch.costs()}, on_metrics)
        if self.step % self.config.log_every == 0:
            self._loss_sums.zero_()
            self._loss_steps = 0

    def _evaluate(self, index: int, step: int) -> dict[str, Any]:
        """Ask a member as it is after `step`."""
        row = {"step": step, **self.tasks[index].ask(self.agent(index), self.config.n_evaluate)}
        self.members[index].log(row)
        self._last[index] = row
        return row

    def _save(self) -> None:
        """Write a checkpoint of the whole ensemble unless this step has one."""
        if self.step == self._saved_step:
            return
        check_finite(self.model, self.step, self.folder.checkpoints)
        state = {
            "step": self.step,
            "n_threads": self.n_threads,
            "loss_sums": self._loss_sums,
            "loss_steps": self._loss_steps,
            "dialogues": self._dialogues,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_checkpoint(self.folder.checkpoints, self.step, state)
        keep_last(self.folder.checkpoints, self.config.keep_checkpoints)
        self._saved_step = self.step

    def _finish(self, index: int) -> dict[str, Any]:
        """Write a member's folder, unless that is done; returns its evaluation."""
        folder, end, last = self.members[index].checkpoints, self._end(index), self._last[index]
        assert end is not None
        if not checkpoints(folder):
            keep_last(folder, 0)
            save_checkpoint(
                folder,
                end,
                None,
                lambda path: save_model_and_tokenizer(
                    self.model.member(index), self.tokenizer, path
                ),
            )
        return last if last is not None and last["step"] == end else self._evaluate(index, end)


def _common(configs: Sequence[MemoryConfig]) -> MemoryConfig:
    """What all members share, as the first has it; raises ConfigError where they do not."""
    if not configs:
        raise ConfigError("An ensemble needs at least one member.")
    first = dataclasses.asdict(configs[0])
    for index, config in enumerate(configs):
        own = dataclasses.asdict(config)
        for name in first:
            if name not in OWN and own[name] != first[name]:
                raise ConfigError(
                    f"Member {index} has {name}={own[name]!r}, the first {first[name]!r}; members "
                    f"may differ in {', '.join(OWN)} only."
                )
    if configs[0].tokenizer == "used-bytes":
        raise ConfigError("used-bytes differ from world to world; give members another tokenizer.")
    return configs[0]


def may_join(config: MemoryConfig) -> tuple[Any, ...]:
    """Runs with equal keys may be members of one ensemble."""
    shared = dataclasses.asdict(config)
    # Members may end at steps of their own, but until the last one does, all are computed.
    return tuple(value for name, value in shared.items() if name not in OWN or name == "n_steps")


def fastest_size(config: MemoryConfig) -> int:
    """As how many members of one model runs like this one train fastest; 1 for alone.

    On a CPU, one thread a job, as `itl bench run ensembles --n-threads 1` measures it: the wider
    the model and the larger the batch, the less there is to gain. On a GPU nobody has measured it.
    """
    if config.tokenizer == "used-bytes":  # whose vocabularies differ
        return 1
    if config.device != "cpu":
        return 64
    # What was measured is in-weight; dialogues with calls are about two and three times as long.
    longer = 1 if config.mode == "in-weight" else 2 if config.style == "compact" else 3
    numbers = config.batch_size * config.d_model * longer
    return 16 if numbers <= 128 else 4 if numbers <= 256 else 1
