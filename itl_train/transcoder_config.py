"""The settings of a transcoder's training; they load no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from itl_env.errors import ConfigError
from itl_train.settings import check_at_least, check_types


def check_features(d_new: Sequence[int]) -> None:
    """Raise ConfigError if a delta would have no features."""
    if any(each < 1 for each in d_new):
        raise ConfigError(f"d_new holds {min(d_new)}; features are at least 1.")


@dataclass(frozen=True, kw_only=True)
class TranscoderCourse:
    """The course of a training, whatever its size."""

    sparsity_warmup: int = 1_000  # steps until that weight is full
    lr: float = 1e-3  # learning rate of Adam
    lr_warmup: int = 1_000  # steps until the learning rate is full
    decay: float = 0.0  # share of the steps, at the end, in which the rate falls to 0
    threshold: float = 1e-3  # of each feature, at first
    train_threshold: bool = True  # by straight-through estimates, else it stays
    bandwidth: float = 0.05  # width of the estimates' kernel around the threshold
    batch_tokens: int = 2_048  # tokens a step
    n_steps: int = 3_000  # optimizer steps
    evaluate_every: int = 500  # steps between evaluations on validation tokens
    n_evaluate: int = 20_000  # validation tokens
    patience: int = 3  # evaluations without a better one after which training ends; 0 for never
    keep_checkpoints: int = 1  # of this many, the last ones
    seed: int = 0  # draws the first weights and the order of tokens
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for torch's choice

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(
            self, 1, "batch_tokens", "n_steps", "evaluate_every", "n_evaluate", "keep_checkpoints"
        )
        check_at_least(self, 0, "sparsity_warmup", "lr_warmup", "patience", "n_threads")
        for name in ("lr", "threshold", "bandwidth"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}; it must be from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class TranscoderSettings(TranscoderCourse):
    """One training, of a base or of a delta beside one."""

    d_sae: int  # features
    sparsity: float  # weight of mean|a| in the loss, beside the mean squared error

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "d_sae")
        check_at_least(self, 0, "sparsity")
