"""The settings of every run that fine-tunes a pretrained model; they load no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from itl_env.errors import ConfigError
from itl_train.settings import check_at_least, check_types


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings(ABC):
    """The model, its adapter and the optimizer of one run; what is learnt, and for how long, is a
    subclass's.
    """

    model: str  # smollm-135m and other short names, a hub id, a folder, or a .gguf file
    lora_rank: int = 16  # rank of the adapter; 0 to train all weights
    lora_alpha: int = 32  # its updates are multiplied by lora_alpha / lora_rank
    lora_dropout: float = 0.0  # share of its inputs that are dropped in training
    lr: float = 1e-3  # learning rate
    batch_size: int = 8  # dialogues a step, of all processes together
    at_once: int = 8  # dialogues that a process computes at once, at most; gradients add up
    warmup: float = 0.05  # share of the steps until the learning rate is full; then it is constant
    weight_decay: float = 0.0  # of AdamW
    clip: float = 1.0  # the largest norm a gradient may have; 0 for any
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    gradient_checkpointing: bool = False  # compute activations again instead of keeping them
    seed: int = 0  # drives the adapter's initialisation and the order of the data
    log_every: int = 5  # steps between lines of metrics.jsonl
    n_evaluate: int = 100  # questions in an evaluation, of either kind; always the same ones
    keep_checkpoints: int = 0  # how many of the last ones are kept; 0 for all
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for one a core

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "batch_size", "at_once", "log_every", "n_evaluate")
        check_at_least(
            self, 0, "lora_rank", "weight_decay", "clip", "lr", "keep_checkpoints", "n_threads"
        )
        if self.lora_alpha <= 0:
            raise ConfigError(f"lora_alpha is {self.lora_alpha}; it must be positive.")
        self._check_shares("warmup", "lora_dropout")

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")

    @property
    def rate(self) -> float:
        """The learning rate, once it is full."""
        return self.lr

    @property
    def schedule(self) -> str:
        """How the learning rate goes on from there, by the name that transformers has for it."""
        return "constant_with_warmup"

    @property
    @abstractmethod
    def evaluation_steps(self) -> int:
        """Steps between evaluations; the last step is always evaluated."""

    @property
    @abstractmethod
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints; the last step has one, too."""

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


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings(SupervisedSettings):
    """The settings of a run that learns dialogues, and is asked questions in them."""

    system: str = ""  # a system message before each dialogue; by default what the template has
    stop_at: float = 0.0  # recall in an evaluation at which training ends early; 0 for never
    stop_on: Literal["seen", "unseen"] = "seen"  # of what is trained on, or of the rest

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("stop_at")

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps of the whole run."""

    def is_enough(self, evaluation: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation shows the recall at which training ends early."""
        if not self.stop_at or evaluation is None:
            return False
        return bool(evaluation[f"recall_{self.stop_on}"] >= self.stop_at)
