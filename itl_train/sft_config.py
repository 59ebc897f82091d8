"""The settings of `itl_train.sft`, which load no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from itl_env.database import FactDatabase
from itl_env.dialogue import Style
from itl_env.errors import ConfigError
from itl_env.recall import Mode, RecallTask, max_queries_of
from itl_env.trivia import open_trivia, task_over
from itl_train.settings import check_at_least, check_types

RecipeName = Literal["lora", "published"]

PUBLISHED_RATES: Mapping[str, Mapping[Mode, float]] = {
    "smollm-135m": {"in-weight": 1e-3, "in-tool": 1e-4},
    "smollm-360m": {"in-weight": 1e-3, "in-tool": 1e-4},
    "smollm-1.7b": {"in-weight": 3e-4, "in-tool": 5e-5},
    "llama-1b": {"in-weight": 5e-5},
    "llama-3b": {"in-weight": 4e-5},
    "llama-8b": {"in-weight": 2e-5},
}
"""Learning rates of arXiv 2508.20755, section 6; none is known of in-tool runs of Llama."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # The defaults: a small adapter at a high rate, which teaches a tool in some forty steps.
    "lora": {},
    # All weights in bfloat16, large batches, a constant rate after a warm-up.
    "published": {
        "lora_rank": 0,
        "lora_dropout": 0.05,  # where a rank is set
        "dtype": "bfloat16",
        "lr": 0.0,
        "batch_size": 128,
        "n_epochs": 30.0,
        "warmup": 0.05,
        "evaluate_every": 0.5,
        "checkpoint_every": 2.0,
    },
}
"""Settings by recipe, where they differ from the defaults of `SFTSettings`."""


@dataclass(frozen=True)
class SFTSettings:
    """One fine-tuning run; the same fields are the command line's flags and `config.yaml`."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    model: str  # smollm-135m and other short names, a hub id, a folder, or a .gguf file
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    trivia: bool = False  # the database is one of `itl facts trivia`, whose answers have aliases
    mode: Mode = "in-tool"  # look facts up, or know them
    style: Style = "compact"  # how a call is written
    calls: Literal["text", "native"] = "text"  # as text, or as the model has learnt to call tools
    system: str = ""  # a system message before each dialogue; by default what the template has
    n_facts: int = 1_000  # facts to train on: the first of the database, all of each person
    n_unseen: int = 400  # facts to test on: the next ones; in-weight runs may set 0
    lora_rank: int = 16  # rank of the adapter; 0 to train all weights
    lora_alpha: int = 32  # its updates are multiplied by lora_alpha / lora_rank
    lora_dropout: float = 0.0  # share of its inputs that are dropped in training
    lr: float = 1e-3  # learning rate; 0 for the published one of this model and mode
    batch_size: int = 8  # dialogues a step, of all processes together
    at_once: int = 8  # dialogues that a process computes at once, at most; gradients add up
    n_epochs: float = 15.0  # times that each dialogue is seen
    n_steps: int = 0  # optimizer steps, if not those of n_epochs
    warmup: float = 0.05  # share of the steps until the learning rate is full; then it is constant
    weight_decay: float = 0.0  # of AdamW
    clip: float = 1.0  # the largest norm a gradient may have; 0 for any
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    gradient_checkpointing: bool = False  # compute activations again instead of keeping them
    stop_at: float = 0.0  # recall in an evaluation at which training ends early; 0 for never
    stop_on: Literal["seen", "unseen"] = "seen"  # of facts trained on, or of others
    seed: int = 0  # drives the adapter's initialisation and the order of the data
    log_every: int = 5  # steps between lines of metrics.jsonl
    evaluate_every: float = 0.5  # epochs between evaluations; the last step is always evaluated
    n_evaluate: int = 100  # questions in an evaluation, of either kind; always the same ones
    checkpoint_every: float = 2.0  # epochs between checkpoints
    keep_checkpoints: int = 0  # how many of the last ones are kept; 0 for all
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for one a core

    @classmethod
    def of(cls, recipe: RecipeName, **settings: Any) -> "SFTSettings":
        """The settings of a recipe, and others, which come first."""
        return cls(**{**RECIPES[recipe], **settings})

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "n_facts", "batch_size", "at_once", "log_every", "n_evaluate")
        check_at_least(
            self, 0, "n_unseen", "lora_rank", "n_steps", "weight_decay", "clip", "lr",
            "keep_checkpoints", "n_threads",
        )  # fmt: skip
        for name in ("n_epochs", "evaluate_every", "checkpoint_every", "lora_alpha"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name in ("stop_at", "warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if not self.lr and self.mode not in PUBLISHED_RATES.get(self.model, {}):
            raise ConfigError(
                f"No learning rate was published for the model {self.model!r} {self.mode}; set lr."
            )
        if self.stop_at and self.stop_on == "unseen" and not self.n_unseen:
            raise ConfigError("stop_on is unseen, but n_unseen is 0; there is nothing to ask.")

    @property
    def rate(self) -> float:
        """The learning rate, published or given."""
        return self.lr or PUBLISHED_RATES[self.model][self.mode]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.n_steps or self.steps_in(self.n_epochs)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in which each dialogue is seen so often, at least one."""
        return max(1, math.ceil(epochs * self.n_facts / self.batch_size))

    def accumulation(self, n_processes: int) -> tuple[int, int]:
        """(dialogues at once, times that a process computes so many) for one optimizer step.

        As many at once as divide a process's share of the batch, but no more than `at_once`.
        Raises ConfigError if the processes cannot share a batch equally.
        """
        own, rest = divmod(self.batch_size, n_processes)
        if rest:
            raise ConfigError(
                f"batch_size is {self.batch_size}, which {n_processes} processes cannot share."
            )
        at_once = next(n for n in range(min(self.at_once, own), 0, -1) if own % n == 0)
        return at_once, own // at_once

    def is_enough(self, evaluation: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation shows the recall at which training ends early."""
        if not self.stop_at or evaluation is None:
            return False
        return bool(evaluation[f"recall_{self.stop_on}"] >= self.stop_at)

    def open_database(self) -> FactDatabase:
        """The table of facts."""
        if self.trivia:
            return open_trivia(self.database)
        return FactDatabase(self.database, table=self.table, key=self.key)

    def task(self, database: FactDatabase, keys: slice) -> RecallTask:
        """The task over a slice of the database in this run's mode and style."""
        make = task_over if self.trivia else RecallTask
        return make(database, keys=keys, style=self.style, max_queries=max_queries_of(self.mode))
