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
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from itl_agents.agent import rollout
from itl_agents.evaluate import measure_recall, one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaAgent, NanoLlamaConfig
from itl_agents.nanollama.model import Block
from itl_agents.scripted import ExpertAgent
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.dialogue import Style
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_train.batches import BatchPlan, Dialogues
from itl_train.checkpoint import checkpoints, keep_last, load_checkpoint, save_checkpoint
from itl_train.optim import Muon, warmup_then_linear
from itl_train.run_folder import RunFolder


@dataclass(frozen=True)
class MemoryConfig:
    """One training run; the same fields are the command line's flags and `config.yaml`."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    mode: Literal["in-tool", "in-weight"] = "in-tool"  # look facts up, or know them
    style: Style = "compact"  # how a call is written
    n_people: int = 20_000  # people to train on: the first of the database
    n_unseen: int = 1_000  # people to test on: the next ones; in-weight runs may set 0
    d_model: int = 64  # width of the residual stream
    n_layers: int = 3  # attention and feed-forward blocks
    n_heads: int = 4  # attention heads
    d_hidden: int | None = 64  # width of the feed-forward; none for 4 d_model
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    max_length: int = 512  # tokens the model can see
    optimizer: Literal["muon", "adamw"] = "muon"  # of hidden matrices; AdamW takes the rest
    lr: float = 4e-3  # AdamW's learning rate
    muon_lr: float = 0.02  # Muon's learning rate
    weight_decay: float = 0.0  # of both
    batch_size: int = 16  # dialogues a step
    n_steps: int = 2_000  # optimizer steps
    n_warmup: int = 50  # steps until the learning rate is full; then it falls linearly to 0
    seed: int = 0  # drives initialisation and data order
    log_every: int = 50  # steps between lines of metrics.jsonl
    evaluate_every: int = 1_000  # steps between evaluations; the last step is always evaluated
    n_evaluate: int = 1_000  # people asked in an evaluation, one question each
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # how many of the last ones are kept
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for as many as there are cores, at most 4

    def __post_init__(self) -> None:
        positive = ("n_people", "batch_size", "n_steps", "log_every", "evaluate_every")
        for name in (*positive, "checkpoint_every", "keep_checkpoints", "n_evaluate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("n_unseen", "n_warmup", "weight_decay", "n_threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")
        for name in ("lr", "muon_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        self.model_config()  # contradictions in the shape are reported before any work

    def model_config(self) -> NanoLlamaConfig:
        """The model's shape."""
        return NanoLlamaConfig(
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_hidden=self.d_hidden,
            rope_theta=self.rope_theta,
            max_length=self.max_length,
        )

    def task(self, database: FactDatabase, keys: slice) -> RecallTask:
        """The task over a slice of the database in this run's mode and style."""
        max_queries = 1 if self.mode == "in-tool" else 0
        return RecallTask(database, keys=keys, style=self.style, max_queries=max_queries)


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
                f"{database!r} holds {len(database)} people, fewer than the {config.n_people} to "
                f"train on and {config.n_unseen} unseen ones; lower n_people or n_unseen."
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


class MemoryRun:
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    def __init__(self, config: MemoryConfig, out: Path) -> None:
        """Open or begin the run; nothing is written if the database or config is unfit.

        Raises ConfigError if the folder holds a run of another configuration.
        """
        self.config = config
        self.tasks = Tasks.open(config)
        self.folder = RunFolder.open(out, dataclasses.asdict(config))
        self.tokenizer = ByteTokenizer()
        self.step = 0
        self.model = NanoLlama(
            config.model_config(), seed=streams.key(config.seed, "initialisation") % 2**63
        )
        self._loss_sum, self._loss_steps = 0.0, 0
        state = self._restore()
        self.model.to(config.device)
        self.optimizers = make_optimizers(self.model, config)
        if state is not None:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.folder.forget_metrics_after(self.step)

    def _restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, if there is any."""
        for path in reversed(checkpoints(self.folder.checkpoints)):
            try:
                self.model, state = load_checkpoint(path)
            except ITLError as error:
                self.folder.warn(f"{error} The checkpoint before it is used.")
                continue
            self.step = state["step"]
            self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
            return state
        return None

    def agent(self) -> NanoLlamaAgent:
        """The model as it is now, playing greedily."""
        return NanoLlamaAgent(self.model, self.tokenizer, name=f"nanollama {self.config.mode}")

    def train(self, on_metrics: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C saves a checkpoint and raises KeyboardInterrupt. Raises ITLError at a loss that is
        not finite, naming the step.
        """
        config = self.config
        threads = config.n_threads or min(4, torch.get_num_threads())
        torch.set_num_threads(threads)
        if self.step < config.n_steps:
            dialogues = expert_dialogues(self.tasks.seen, self.tokenizer)
            plan = BatchPlan(dialogues.to(config.device), config.batch_size, config.seed)
            try:
                while self.step < config.n_steps:
                    self._advance(plan, on_metrics)
            except KeyboardInterrupt:
                self._save()
                raise
        last = self.folder.last_evaluation()
        if last is None or last["step"] != self.step:
            last = self._evaluate(on_metrics)
        return last

    def _advance(
        self, plan: BatchPlan, on_metrics: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """One optimizer step, and what is due after it."""
        config = self.config
        began = time.perf_counter()
        batch = plan.batch(self.step)
        factor = warmup_then_linear(self.step, config.n_steps, config.n_warmup)
        logits = self.model(batch.input_ids, positions=batch.positions)
        loss = F.cross_entropy(logits, batch.targets)
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise ITLError(
                f"The loss is {value} at step {self.step}; lower lr or muon_lr. "
                f"The last checkpoint in {self.folder.checkpoints} is intact."
            )
        for optimizer, rate in zip(self.optimizers, (config.lr, config.muon_lr), strict=False):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._loss_sum += value
        self._loss_steps += 1
        seconds = time.perf_counter() - began
        if self.step % config.log_every == 0 or self.step == config.n_steps:
            self.folder.log(
                {
                    "step": self.step,
                    "loss": self._loss_sum / self._loss_steps,
                    "lr": config.lr * factor,
                    "tokens_per_s": batch.n_tokens / seconds,
                    "exposures": self.step * config.batch_size / len(plan.dialogues),
                },
                on_metrics,
            )
            self._loss_sum, self._loss_steps = 0.0, 0
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
        state = {
            "step": self.step,
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        folder = self.folder.checkpoints
        save_checkpoint(folder, self.step, self.model, self.tokenizer, state)
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
