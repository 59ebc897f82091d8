"""The settings of every NanoLlama that is trained; torch is loaded when one is made, not when this
is read. So the command line can print its help at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from itl_env import streams
from itl_env.errors import ConfigError
from itl_train.settings import check_at_least, check_types

if TYPE_CHECKING:
    from itl_agents.nanollama import NanoLlamaConfig


@dataclass(frozen=True)
class NanoConfig:
    """The model, the optimizer and the course of one run; what is learnt is a subclass's."""

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

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(
            self, 1, "batch_size", "n_steps", "log_every", "evaluate_every", "checkpoint_every",
            "keep_checkpoints", "n_evaluate",
        )  # fmt: skip
        check_at_least(
            self, 0, "n_warmup", "horizon", "n_threads", "pad_to", "weight_decay", "clip"
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
