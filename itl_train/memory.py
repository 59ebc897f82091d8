"""Train a NanoLlama to know facts (in-weight) or to look them up (in-tool).

    itl train memory --database sqlite:///facts.db --mode in-tool --out runs/in-tool

The training data are the expert's episodes in the very task that evaluates the model. A run is a
folder that can be killed at any moment; started again, it goes on from its last checkpoint and ends
with the same bits as an unbroken run on the same machine.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from itl_agents.agent import rollout
from itl_agents.evaluate import measure_recall, one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaAgent
from itl_agents.nanollama.model import Block
from itl_agents.scripted import ExpertAgent
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_train.batches import Batch, BatchPlan, Dialogues
from itl_train.checkpoint import checkpoints, keep_last, load_checkpoint, save_checkpoint
from itl_train.interrupt import deferred_interrupt
from itl_train.memory_config import MemoryConfig
from itl_train.optim import Muon, warmup_then_linear
from itl_train.run_folder import RunFolder, has_begun

__all__ = [
    "MemoryConfig",
    "MemoryRun",
    "Tasks",
    "expert_dialogues",
    "make_optimizers",
    "train_memory",
    "train_step",
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
                f"{database.place} holds {len(database):,} people, fewer than the "
                f"{config.n_people:,} to train on and {config.n_unseen:,} unseen ones; lower "
                "n_people or n_unseen."
            )
        seen = config.task(database, slice(0, config.n_people))
        unseen = config.task(database, slice(config.n_people, last)) if config.n_unseen else None
        return cls(seen, unseen)


def expert_dialogues(task: RecallTask, tokenizer: ByteTokenizer) -> Dialogues:
    """The expert's episodes about every fact of the task, rendered."""
    return Dialogues.render(rollout(ExpertAgent(task), task, task.facts(), lanes=1024), tokenizer)


def make_optimizers(model: NanoLlama, config: MemoryConfig) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, head and gains; Muon or AdamW for the matrices of the blocks."""
    shape = model.config
    d, d_kv = shape.d_model, shape.kv_heads * shape.d_head
    hidden: list[tuple[torch.nn.Parameter, tuple[int, ...]]] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        hidden += [
            (block.qkv, (d, d_kv, d_kv)),
            (block.out, (d,)),
            (block.gate_up, (shape.hidden_width, shape.hidden_width)),
            (block.down, (d,)),
        ]
    is_hidden = {id(parameter) for parameter, _ in hidden}
    others = [p for p in model.parameters() if id(p) not in is_hidden]
    muon = []
    if config.optimizer == "muon":
        muon = [Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay)]
    else:
        others += [parameter for parameter, _ in hidden]
    adamw = torch.optim.AdamW(
        others, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    return [adamw, *muon]


def train_step(
    model: NanoLlama,
    optimizers: Sequence[torch.optim.Optimizer],
    rates: Sequence[float],
    batch: Batch,
) -> float:
    """One step of each optimizer at its learning rate; returns the loss before it.

    rates: AdamW's and Muon's; the second is not used where AdamW takes all weights.

    The weights stay as they are if the loss is not finite.
    """
    logits = model(batch.input_ids, positions=batch.positions)
    loss = F.cross_entropy(logits, batch.targets)
    loss.backward()
    value = loss.item()
    if math.isfinite(value):
        for optimizer, rate in zip(optimizers, rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return value


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
        # The address as it may be written down: without a password.
        settings = {**dataclasses.asdict(config), "database": self.tasks.seen.database.url}
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

    def _render(self) -> Dialogues:
        """The training dialogues, rendered once; raises ConfigError if the model is too short."""
        if self._dialogues is None:
            dialogues = expert_dialogues(self.tasks.seen, self.tokenizer)
            longest = int(dialogues.lengths.max())
            if longest > self.config.max_length:
                raise ConfigError(
                    f"max_length is {self.config.max_length}, shorter than the longest dialogue "
                    f"of {longest} tokens; raise it."
                )
            self._dialogues = dialogues.to(self.config.device)
        return self._dialogues

    def _restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, if there is any."""
        broken = []
        for path in reversed(checkpoints(self.folder.checkpoints)):
            try:
                self.model, state = load_checkpoint(path)
            except ITLError as error:
                self.folder.warn(f"{error} An earlier checkpoint is used, if there is one.")
                broken.append(path)
                continue
            for other in broken:  # they must not count among those that are kept
                shutil.rmtree(other)
            self.step = self._saved_step = state["step"]
            # Sums depend on how many threads share them: the same bits need the same number.
            self.n_threads = state["n_threads"]
            self._digest = state["dialogues"]
            self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
            return state
        return None

    def agent(self) -> NanoLlamaAgent:
        """The model as it is now, playing greedily."""
        return NanoLlamaAgent(self.model, self.tokenizer, name=f"nanollama {self.config.mode}")

    def train(self, on_metrics: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C finishes the step, saves a checkpoint and raises KeyboardInterrupt. Raises ITLError
        at a loss that is not finite, naming the step.
        """
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.n_threads)
        try:
            self._train(on_metrics)
            last = self.folder.last_evaluation()
            if last is None or last["step"] != self.step:
                last = self._evaluate(on_metrics)
        finally:
            torch.set_num_threads(threads_before)
        return last

    def _train(self, on_metrics: Callable[[dict[str, Any]], None] | None) -> None:
        """Take the steps that are left."""
        if self.step == self.config.n_steps:
            return
        dialogues = self._render()
        digest = dialogues.digest()
        if self._digest not in (None, digest):
            raise ConfigError(
                f"{self.tasks.seen.database.place} has changed since the run in {self.folder.path} "
                "began; begin another run, or bring the old database back."
            )
        self._digest = digest
        plan = BatchPlan(dialogues, self.config.batch_size, self.config.seed)
        with deferred_interrupt() as interrupted:
            while self.step < self.config.n_steps:
                self._advance(plan, on_metrics)
                if interrupted():
                    self._save()
                    raise KeyboardInterrupt

    def _advance(
        self, plan: BatchPlan, on_metrics: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """One optimizer step, and what is due after it."""
        config = self.config
        began = time.perf_counter()
        batch = plan.batch(self.step)
        factor = warmup_then_linear(self.step, config.n_steps, config.n_warmup)
        rates = (config.lr * factor, config.muon_lr * factor)
        value = train_step(self.model, self.optimizers, rates, batch)
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
                "lr": config.lr * factor,
                "tokens_per_s": batch.n_tokens / seconds,
                "exposures": self.step * config.batch_size / len(plan.dialogues),
            }
            self._loss_sum, self._loss_steps = 0.0, 0
            self.folder.log(row, on_metrics)
        if self.step % config.evaluate_every == 0 and self.step < config.n_steps:
            self._evaluate(on_metrics)
        if self.step % config.checkpoint_every == 0 or self.step == config.n_steps:
            self._save()

    def _evaluate(self, on_metrics: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        """Recall on training people and on unseen ones, through the task."""
        row: dict[str, Any] = {"step": self.step}
        for name, task in (("seen", self.tasks.seen), ("unseen", self.tasks.unseen)):
            if task is None:
                continue
            count = measure_recall(
                self.agent(), task, one_question_each(task, self.config.n_evaluate)
            )
            row |= {
                f"recall_{name}": count.recall,
                f"asked_{name}": count.asked,
                f"right_{name}": count.right,
            }
        self.folder.log(row, on_metrics)
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
        save_checkpoint(folder, self.step, self.model, self.tokenizer, state)
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
