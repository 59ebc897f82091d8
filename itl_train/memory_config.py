"""The settings of `itl_train.memory`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from itl_env.database import FactDatabase
from itl_env.dialogue import Style
from itl_env.errors import ConfigError
from itl_env.recall import Mode, RecallTask, max_queries_of
from itl_train.nano_config import NanoConfig
from itl_train.settings import check_at_least

RecipeName = Literal["quickstart", "fast", "published"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # The defaults: Muon on hidden matrices, blocks that begin silent, rows of nearly equal length.
    "quickstart": {},
    # Larger batches at higher rates, positions that turn faster, until the facts are known; every
    # setting is named, for studies to record.
    "fast": {
        "optimizer": "muon",
        "lr": 6e-3,
        "muon_lr": 0.02,
        "schedule": "linear",
        "n_warmup": 50,
        "batch_size": 32,
        "rope_theta": 100.0,  # dialogues are short; slower frequencies tell no places in them apart
        "zero_residual": True,
        "stop_at": 0.99,
        "evaluate_every": 500,
    },
    # arXiv 2508.20755, section 5: its optimizer, schedule, batch, padding and shape.
    "published": {
        "n_layers": 2,
        "n_heads": 2,
        "d_hidden": None,
        "style": "fenced",
        "zero_residual": False,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "n_warmup": 50,
        "batch_size": 128,
        "n_steps": 100_000,
        "pad_to": 257,
    },
}
"""Settings by recipe, where they differ from the defaults of `MemoryConfig`."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(NanoConfig):
    """One training run; the same fields are the command line's flags and `config.yaml`."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    mode: Mode = "in-tool"  # look facts up, or know them
    style: Style = "compact"  # how a call is written
    n_people: int = 20_000  # people to train on: the first of the database
    n_unseen: int = 1_000  # people to test on: the next ones; in-weight runs may set 0
    sources: tuple[str, ...] = ()  # what to train on; by default the expert's episodes in the mode
    """in-tool, in-weight, biographies, or a file of texts or messages; in-tool=3 weighs 3"""

    @classmethod
    def of(cls, recipe: RecipeName, **settings: Any) -> "MemoryConfig":
        """The settings of a recipe, and others, which come first."""
        return cls(**{**RECIPES[recipe], **settings})

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # a file's list is one, too
        super().__post_init__()
        check_at_least(self, 1, "n_people")
        check_at_least(self, 0, "n_unseen")
        if self.stop_at and self.stop_on == "unseen" and not self.n_unseen:
            raise ConfigError("stop_on is unseen, but n_unseen is 0; there is nobody to ask about.")
        if self.tokenizer == "used-bytes" and (self.mode == "in-tool" or self.sources):
            raise ConfigError(
                "tokenizer is used-bytes, which knows in-weight dialogues only; take bytes for "
                "in-tool runs and other sources."
            )

    def task(self, database: FactDatabase, keys: slice) -> RecallTask:
        """The task over a slice of the database in this run's mode and style."""
        return RecallTask(
            database, keys=keys, style=self.style, max_queries=max_queries_of(self.mode)
        )
