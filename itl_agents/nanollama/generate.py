"""Batched generation with a key-value cache: prompts of any lengths together, ended rows leave."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itl_agents.nanollama.model import KVCache, NanoLlama
from itl_env import streams


class Generated(NamedTuple):
    """New ids of one prompt, with the stop id if it was reached, and whether it was."""

    token_ids: list[int]
    stopped: bool


@torch.inference_mode()
def generate(
    model: NanoLlama,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[Generated]:
    """Continue each prompt until it writes one of `stop_ids`, `max_new_tokens` ids, or as many as
    fit into the model's `max_length` tokens.

    temperature: 0 takes the likeliest id; above 0 ids are drawn from softmax(logits / temperature)
        with randomness that depends on the row's seed alone.
    seeds: one for each prompt; needed when temperature is above 0.

    Raises ValueError for an empty prompt, one that leaves no room for a new token, or missing
    seeds.
    """
    if not prompts:
        return []
    device = model.embedding.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    max_length = model.config.max_length
    if int(lengths.min()) < 1 or int(lengths.max()) >= max_length:
        raise ValueError(
            f"Prompts must have 1 to {max_length - 1} tokens so that the model of {max_length} can "
            f"go on; these have {int(lengths.min())} to {int(lengths.max())}."
        )
    if temperature > 0 and seeds is None:
        raise ValueError("Sampling needs one seed for each prompt.")
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids, lengths = ids.to(device), lengths.to(device)
    noise = None if temperature <= 0 else _Gumbel(seeds or (), model.config.vocabulary_size)

    limits = (max_length - lengths).clamp_max(max_new_tokens)
    longest = int(limits.max())
    capacity = min(ids.shape[1] + longest, max_length)
    cache = KVCache(model.config, len(prompts), capacity, model.embedding)
    last = torch.arange(len(prompts), device=device) * ids.shape[1] + lengths - 1
    logits = model(ids, cache, positions=last)
    cache.lengths += lengths

    stops = torch.tensor(list(stop_ids), device=device)
    written = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    counts = limits.clone()
    live = torch.arange(len(prompts), device=device)  # the prompt that each row of the cache serves
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # by row of the cache
    for step in range(longest):
        if noise is not None:
            logits = logits / temperature + noise(live, step).to(logits)
        new = logits.argmax(dim=-1)
        written[live, step] = new
        ending = (torch.isin(new, stops) | (limits[live] == step + 1)) & ~ended
        counts[live[ending]] = step + 1
        ended |= ending
        n_ended = int(ended.sum())
        if n_ended == len(live):
            break
        # Leaving costs a copy of the cache, so rows leave an eighth of the batch at a time.
        if n_ended * 8 >= len(live):
            stay = (~ended).nonzero()[:, 0]
            live, new, ended = live[stay], new[stay], ended[stay]
            cache.keep(stay)
        logits = model(new[:, None], cache)[:, 0]
        # A row that has ended waits at its last place, which always exists.
        cache.lengths = (cache.lengths + 1).clamp_max(capacity - 1)
    rows = zip(written.tolist(), counts.tolist(), strict=True)
    stopping = set(stop_ids)
    return [Generated(row[:n], row[n - 1] in stopping) for row, n in rows]


class _Gumbel:
    """Gumbel noise (prompts, vocabulary) for each step, from each prompt's seed alone.

    The argmax of logits plus Gumbel noise is a draw from their softmax.
    """

    def __init__(self, seeds: Sequence[int], vocabulary_size: int) -> None:
        self.seeds = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
        self.places = np.arange(vocabulary_size, dtype=np.uint64)
        self.key = streams.key(0, "gumbel")

    def __call__(self, live: Tensor, step: int) -> Tensor:
        mixed = streams.bits(self.key, self.seeds[live.cpu().numpy()] + np.uint64(step))
        raw = streams.bits(self.key, mixed[:, None] + self.places)
        uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return torch.from_numpy(-np.log(-np.log(uniform)))
