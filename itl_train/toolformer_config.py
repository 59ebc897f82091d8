"""The settings of `itl_train.toolformer`, which load no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from itl_env.errors import ConfigError
from itl_train.fine_tune_config import SupervisedSettings
from itl_train.settings import check_at_least


@dataclass(frozen=True, kw_only=True)
class ToolformerSettings(SupervisedSettings):
    """One fine-tuning run; the same fields are the command line's flags and `config.yaml`.

    The defaults are for small models; of Gemma-2-2B the rate in the original is 2e-5.
    """

    data: str  # folder of `itl toolformer data`
    epochs: float = 5.0  # times that each row is seen
    lora_dropout: float = 0.1  # share of the adapter's inputs that are dropped in training
    lr: float = 2e-4  # learning rate, which falls to 0 along a cosine
    warmup: float = 0.05  # share of the steps until the learning rate is full
    batch_size: int = 16  # rows a step, of all processes together
    at_once: int = 16  # rows that a process computes at once, at most; gradients add up
    weight_decay: float = 0.01  # of AdamW
    clip: float = 0.8  # the largest norm a gradient may have; 0 for any
    log_every: int = 10  # steps between lines of metrics.jsonl
    evaluate_every: int = 70  # steps between evaluations; the last step is always evaluated
    n_evaluate: int = 50  # validation rows in an evaluation, of either kind; always the same ones
    patience: int = 2  # evaluations without a better one after which training ends; 0 for never
    checkpoint_every: int = 70  # steps between checkpoints; the last step has one, too

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "evaluate_every", "checkpoint_every")
        check_at_least(self, 0, "patience")
        for name in ("epochs", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")

    @property
    def schedule(self) -> str:
        """See `SupervisedSettings.schedule`."""
        return "cosine"

    @property
    def evaluation_steps(self) -> int:
        """See `SupervisedSettings.evaluation_steps`."""
        return self.evaluate_every

    @property
    def checkpoint_steps(self) -> int:
        """See `SupervisedSettings.checkpoint_steps`."""
        return self.checkpoint_every

    def steps(self, n_rows: int) -> int:
        """Optimizer steps in which n rows are seen `epochs` times, at least one."""
        return max(1, math.ceil(self.epochs * n_rows / self.batch_size))

    def out_of_patience(self, shares: Sequence[float]) -> bool:
        """Whether evaluations have not become better for too long.

        shares: of exact calls, in all evaluations so far. Those before the first exact call do not
        count: a model that has not begun to learn is not done.
        """
        if not self.patience or not shares or not max(shares):
            return False
        return len(shares) - 1 - shares.index(max(shares)) >= self.patience
