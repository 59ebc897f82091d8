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
from itl_train.fine_tune_config import FineTuneSettings
from itl_train.settings import check_at_least

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


@dataclass(frozen=True, kw_only=True)
class SFTSettings(FineTuneSettings):
    """One fine-tuning run; the same fields are the command line's flags and `config.yaml`."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    trivia: bool = False  # the database is one of `itl facts trivia`, whose answers have aliases
    mode: Mode = "in-tool"  # look facts up, or know them
    style: Style = "compact"  # how a call is written
    calls: Literal["text", "native"] = "text"  # as text, or as the model has learnt to call tools
    n_facts: int = 1_000  # facts to train on: the first of the database, all of each person
    n_unseen: int = 400  # facts to test on: the next ones; in-weight runs may set 0
    lr: float = 1e-3  # learning rate; 0 for the published one of this model and mode
    n_epochs: float = 15.0  # times that each dialogue is seen
    n_steps: int = 0  # optimizer steps, if not those of n_epochs
    stop_on: Literal["seen", "unseen"] = "seen"  # of facts trained on, or of others
    evaluate_every: float = 0.5  # epochs between evaluations; the last step is always evaluated
    checkpoint_every: float = 2.0  # epochs between checkpoints

    @classmethod
    def of(cls, recipe: RecipeName, **settings: Any) -> "SFTSettings":
        """The settings of a recipe, and others, which come first."""
        return cls(**{**RECIPES[recipe], **settings})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "n_facts")
        check_at_least(self, 0, "n_unseen", "n_steps")
        for name in ("n_epochs", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
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
        """See `FineTuneSettings.steps`."""
        return self.n_steps or self.steps_in(self.n_epochs)

    @property
    def evaluation_steps(self) -> int:
        """See `FineTuneSettings.evaluation_steps`."""
        return self.steps_in(self.evaluate_every)

    @property
    def checkpoint_steps(self) -> int:
        """See `FineTuneSettings.checkpoint_steps`."""
        return self.steps_in(self.checkpoint_every)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in which each dialogue is seen so often, at least one."""
        return max(1, math.ceil(epochs * self.n_facts / self.batch_size))

    def open_database(self) -> FactDatabase:
        """The table of facts."""
        if self.trivia:
            return open_trivia(self.database)
        return FactDatabase(self.database, table=self.table, key=self.key)

    def task(self, database: FactDatabase, keys: slice) -> RecallTask:
        """The task over a slice of the database in this run's mode and style."""
        make = task_over if self.trivia else RecallTask
        return make(database, keys=keys, style=self.style, max_queries=max_queries_of(self.mode))
