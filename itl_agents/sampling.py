"""Draws from logits that depend on nothing but a row's own seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from itl_env import streams


class Gumbel:
    """Gumbel noise (prompts, vocabulary) for each step, from each prompt's seed alone.

    The argmax of logits plus Gumbel noise is a draw from their softmax.
    """

    def __init__(self, seeds: Sequence[int], vocabulary_size: int) -> None:
        self.seeds = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
        self.places = np.arange(vocabulary_size, dtype=np.uint64)

    def __call__(self, live: Tensor, step: int) -> Tensor:
        key = streams.key(0, "gumbel", step)
        mixed = streams.bits(key, self.seeds[live.cpu().numpy()])
        raw = streams.bits(key, mixed[:, None] + self.places)
        uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return torch.from_numpy(-np.log(-np.log(uniform)))
