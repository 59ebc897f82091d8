"""The settings of `itl_train.memory`; torch is loaded when one is made, not when this is read.

So the command line can print its help at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.dialogue import Style
from itl_env.errors import ConfigError
from itl_env.recall import Mode, RecallTask, max_queries_of
from itl_train.settings import check_at_least, check_types

if TYPE_CHECKING:
    from itl_agents.nanollama import NanoLlamaConfig

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


@dataclass(frozen=True)
class MemoryConfig:
    """One training run; the same fields are the command line's flags and `config.yaml`."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    mode: Mode = "in-tool"  # look facts up, or know them
    style: Style = "compact"  # how a call is written
    n_people: int = 20_000  # people to train on: the first of the database
    n_unseen: int = 1_000  # people to test on: the next ones; in-weight runs may set 0
    d_model: int = 64  # width of the residual stream
    n_layers: int = 3  # attention and feed-forward blocks
    n_heads: int = 4  # attention heads
    n_kv_heads: int | None = None  # heads of keys and values, which queries share; None for n_heads
    d_hidden: int | None = 64  # width of the feed-forward; None for 4 d_model
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    max_length: int = 512  # tokens the model can see
    tied_embeddings: bool = False  # one matrix both reads tokens and writes them
    qkv_bias: bool = False  # biases of queries, keys and values
    tokenizer: str = "bytes"  # what a token is
    """bytes; used-bytes for those that occur; a file of a BPE: tokenizer.json, tiktoken's ranks"""
    zero_residual: bool = True  # blocks begin by adding nothing, which learns faster
    optimizer: Literal["muon", "adamw"] = "muon"  # of hidden matrices; AdamW takes the rest
    lr: float = 4e-3  # AdamW's learning rate
    muon_lr: float = 0.02  # Muon's learning rate
    weight_decay: float = 0.0  # of both
    clip: float = 0.0  # the largest norm a gradient may have; 0 for any
    sources: tuple[str, ...] = ()  # what to train on; by default the expert's episodes in the mode
    """in-tool, in-weight, biographies, or a file of texts or messages; in-tool=3 weighs 3"""
    batch_size: int = 16  # dialogues a step
    pad_to: int = 0  # tokens of a row, at least; 0 groups dialogues by length, and pads little
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products
    compile: bool = False
    """torch.compile the model: faster steps, once that is done; needs a C++ compiler"""
    n_steps: int = 2_000  # optimizer steps
    schedule: Literal["linear", "cosine"] = "linear"  # how the learning rate falls to 0
    horizon: int = 0  # steps until it is 0, if not n_steps: for the beginning of a longer schedule
    n_warmup: int = 50  # steps until the learning rate is full
    stop_at: float = 0.0  # recall in an evaluation at which training ends early; 0 for never
    stop_on: Literal["seen", "unseen"] = "seen"  # of training people, or of others
    seed: int = 0  # drives initialisation and data order
    log_every: int = 50  # steps between lines of metrics.jsonl
    evaluate_every: int = 1_000  # steps between evaluations; the last step is always evaluated
    n_evaluate: int = 1_000  # questions in an evaluation: all there are, or one about each person
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # how many of the last ones are kept
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for one a core, at most 4; 1 is best on a busy machine

    @classmethod
    def of(cls, recipe: RecipeName, **settings: Any) -> "MemoryConfig":
        """The settings of a recipe, and others, which come first."""
        return cls(**{**RECIPES[recipe], **settings})

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # a file's list is one, too
        check_types(self)
        check_at_least(
            self, 1, "n_people", "batch_size", "n_steps", "log_every", "evaluate_every",
            "checkpoint_every", "keep_checkpoints", "n_evaluate",
        )  # fmt: skip
        check_at_least(
            self,
            0,
            "n_unseen",
            "n_warmup",
            "horizon",
            "n_threads",
            "pad_to",
            "weight_decay",
            "clip",
        )
        if self.horizon and self.horizon < self.n_steps:
            raise ConfigError(
                f"horizon is {self.horizon}, fewer than the {self.n_steps} steps of n_steps."
            )
        for name in ("lr", "muon_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        if not 0 <= self.stop_at <= 1:
            raise ConfigError(f"stop_at is {self.stop_at}; it must be a recall, 0 to 1.")
        if self.stop_at and self.stop_on == "unseen" and not self.n_unseen:
            raise ConfigError("stop_on is unseen, but n_unseen is 0; there is nobody to ask about.")
        if self.tokenizer == "used-bytes" and (self.mode == "in-tool" or self.sources):
            raise ConfigError(
                "tokenizer is used-bytes, which knows in-weight dialogues only; take bytes for "
                "in-tool runs and other sources."
            )
        if self.pad_to > self.max_length + 1:
            raise ConfigError(
                f"pad_to is {self.pad_to}, longer than the model's max_length {self.max_length}."
            )
        self.model_config()  # contradictions in the shape are reported before any work

    def model_config(self, vocabulary_size: int = 260) -> "NanoLlamaConfig":
        """The model's shape; that of the byte vocabulary by default."""
        from itl_agents.nanollama import NanoLlamaConfig

        return NanoLlamaConfig(
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_hidden=self.d_hidden,
            vocabulary_size=vocabulary_size,
            tied_embeddings=self.tied_embeddings,
            qkv_bias=self.qkv_bias,
            rope_theta=self.rope_theta,
            max_length=self.max_length,
        )

    @property
    def initial_seed(self) -> int:
        """Of the model's initialisation."""
        return streams.key(self.seed, "initialisation") % 2**63

    def is_enough(self, evaluation: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation shows the recall at which training ends early."""
        if not self.stop_at or evaluation is None:
            return False
        return bool(evaluation[f"recall_{self.stop_on}"] >= self.stop_at)

    def task(self, database: FactDatabase, keys: slice) -> RecallTask:
        """The task over a slice of the database in this run's mode and style."""
        return RecallTask(
            database, keys=keys, style=self.style, max_queries=max_queries_of(self.mode)
        )
