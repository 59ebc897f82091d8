"""Batched continuation of prompts by a model of transformers, reading nothing twice.

Dialogues begin alike (with a system message, say), and the prompt of a dialogue's second turn
begins with its first. So what all prompts share is read once, and the keys and values of a turn
stay until the next one, which then reads only what is new. Rows leave the batch as they end.

Models that keep anything but plain keys and values (of a sliding window, of a recurrence) are left
to the generation of transformers.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from itl_agents.sampling import Gumbel

SHARED = 8
"""Tokens that prompts must share for these to be read once."""


class Sampling(NamedTuple):
    """How tokens are drawn: with noise of each row's own seed, at a temperature above 0."""

    noise: Gumbel
    temperature: float

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """Scores whose largest is the draw."""
        scores = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return scores / self.temperature + self.noise(rows, step).to(scores)

    @classmethod
    def of(
        cls, model: PreTrainedModel, seeds: Sequence[int], temperature: float
    ) -> "Sampling | None":
        """Draws from a model's tokens with a seed of each row; None, greedy, at temperature 0."""
        if temperature <= 0:
            return None
        return cls(Gumbel(seeds, int(model.get_output_embeddings().weight.shape[0])), temperature)


def own_stops(model: PreTrainedModel) -> set[int]:
    """The ids at which the model's own settings end a turn."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


class Block(NamedTuple):
    """What some rows have read and written: keys and values, and which slots of them count."""

    cache: DynamicCache
    seen: Tensor  # (rows, slots), 1 where a slot holds a token of the row


class Place(NamedTuple):
    """A row of a block."""

    block: Block
    row: int


class Memory:
    """Blocks of the last turns, by what their rows have read and written."""

    def __init__(self, stop_ids: Sequence[int]) -> None:
        self.stop_ids = frozenset(stop_ids)
        self._places: dict[tuple[int, ...], Place] = {}
        self._weights = b""

    def take(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Place | None]:
        """Where the beginning of each prompt is, if it is known; all is forgotten here.

        Nothing is known once the weights have changed.
        """
        weights = _fingerprint(model)
        places = self._places if weights == self._weights else {}
        self._places, self._weights = {}, weights
        return [self._find(prompt, places) for prompt in prompts]

    def _find(
        self, prompt: Sequence[int], places: "Mapping[tuple[int, ...], Place]"
    ) -> "Place | None":
        """Of what is before a mark that may have ended the assistant's last turn, what is known."""
        for end in range(len(prompt) - 1, -1, -1) if places else ():
            if prompt[end] in self.stop_ids and (place := places.get(tuple(prompt[:end]))):
                return place
        return None

    def put(self, sequences: Sequence[tuple[int, ...]], block: Block) -> None:
        """Remember each row of a block as what was computed for its sequence."""
        self._places.update((ids, Place(block, row)) for row, ids in enumerate(sequences))

    def forget(self) -> None:
        """Give the room back."""
        self._places = {}


def keeps_plain_cache(model: PreTrainedModel) -> bool:
    """Whether the model keeps plain keys and values, which this module can handle."""
    if getattr(model, "_is_stateful", False) or "position_ids" not in _takes(model):
        return False
    cache = DynamicCache(config=model.config)
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def last_logits(model: PreTrainedModel, n: int) -> dict[str, int]:
    """The argument by which a model computes the logits of the last n positions only, if it can."""
    return {"logits_to_keep": n} if "logits_to_keep" in _takes(model) else {}


def _takes(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    """The arguments of a model's forward pass, or of that within an adapter."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(type(bare).forward).parameters


@torch.inference_mode()
def continue_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    known: Sequence[Place] = (),
    memory: Memory | None = None,
) -> list[list[int]]:
    """What the model writes after each prompt: up to and with a stop id, or `max_new_tokens`.

    known: where the beginning of each prompt is; empty if none is known.
    memory: is left what was read and written here.
    """
    if not keeps_plain_cache(model):
        return _generate(model, prompts, stop_ids, max_new_tokens, sampling)
    device = model.device
    last_only = last_logits(model, 1)
    block = _gathered(known) if known else _opening(model, prompts)
    held = block.seen.sum(1).tolist()
    new = [list(prompt[n:]) for prompt, n in zip(prompts, held, strict=True)]
    width = max(map(len, new))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in new], device=device)
    there = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in new], device=device)
    cache, seen = block.cache, torch.cat((block.seen, there), dim=1)

    stops = torch.tensor(list(stop_ids), device=device)
    live = torch.arange(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    written: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        positions = (seen.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        ).logits[:, -1]
        scores = logits if sampling is None else sampling(logits, live, step)
        drawn = scores.argmax(-1)
        for row, token, over in zip(live.tolist(), drawn.tolist(), ended.tolist(), strict=True):
            if not over:
                written[row].append(token)
        ended |= torch.isin(drawn, stops)
        n_ended = int(ended.sum())
        # Leaving costs a copy of the cache, so rows leave a quarter of the batch at a time.
        if n_ended * 4 >= len(live) or step + 1 == max_new_tokens:
            if memory is not None and n_ended:
                _remember(memory, prompts, written, live[ended], Block(cache, seen), ended)
            if n_ended == len(live):
                break
            stay = (~ended).nonzero()[:, 0]
            cache = _rows_of(cache, stay)
            live, drawn, seen, ended = live[stay], drawn[stay], seen[stay], ended[stay]
        ids = drawn[:, None]
        # Rows that have ended go along for a while; what they read then does not count.
        seen = torch.cat((seen, (~ended).long()[:, None]), dim=1)
    return written


def _gathered(places: Sequence[Place]) -> Block:
    """Rows of any blocks as one, their slots flush on the right."""
    blocks = {id(place.block): place.block for place in places}
    slots = max(block.seen.shape[1] for block in blocks.values())
    first = places[0].block
    seen = first.seen.new_zeros(len(places), slots)
    layers = [(held.keys, held.values) for held in _layers(first.cache)]
    whole = [
        [x.new_zeros(len(places), x.shape[1], slots, x.shape[3]) for x in pair] for pair in layers
    ]
    for key, block in blocks.items():
        own = [i for i, place in enumerate(places) if id(place.block) == key]
        rows = torch.tensor([places[i].row for i in own], device=seen.device)
        here = torch.tensor(own, device=seen.device)
        start = slots - block.seen.shape[1]
        seen[here, start:] = block.seen[rows]
        for held, (keys, values) in zip(_layers(block.cache), whole, strict=True):
            keys[here, :, start:] = held.keys[rows]
            values[here, :, start:] = held.values[rows]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(whole):
        cache.update(keys, values, layer)
    return Block(cache, seen)


def _opening(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Block:
    """What all prompts share, read once; nothing if that is little."""
    device, first = model.device, prompts[0]
    shortest = min(map(len, prompts)) - 1  # each must have something left to read
    n = 0
    while n < shortest and all(prompt[n] == first[n] for prompt in prompts):
        n += 1
    cache = DynamicCache()
    if len(prompts) == 1 or n < SHARED:
        return Block(cache, torch.zeros(len(prompts), 0, dtype=torch.long, device=device))
    shared = torch.tensor([list(first[:n])], device=device)
    model.base_model(input_ids=shared, past_key_values=cache, use_cache=True)
    rows = torch.zeros(len(prompts), dtype=torch.long, device=device)
    seen = torch.ones(len(prompts), n, dtype=torch.long, device=device)
    return Block(_rows_of(cache, rows), seen)


def _remember(
    memory: Memory,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    rows: Tensor,
    block: Block,
    ended: Tensor,
) -> None:
    """Put the rows that have ended into the memory; their last token was written, but not read."""
    where = ended.nonzero()[:, 0]
    sequences = [(*prompts[row], *written[row][:-1]) for row in rows.tolist()]
    memory.put(sequences, Block(_rows_of(block.cache, where), block.seen[where]))


def _rows_of(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy of these rows of a cache."""
    taken = DynamicCache()
    for layer, held in enumerate(_layers(cache)):
        taken.update(held.keys[rows], held.values[rows], layer)
    return taken


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers of a cache, with keys and values (rows, heads, slots, d_head)."""
    return list(cache.layers)


def _fingerprint(model: PreTrainedModel) -> bytes:
    """A hash of some numbers of every weight; a step of training changes nearly all there are."""
    found = hashlib.blake2b(digest_size=16)
    for weight in model.parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 16)][:16]
        found.update(sample.float().cpu().numpy().tobytes())
    return found.digest()


# -- the way of transformers --------------------------------------------------------------------


class _Noise(LogitsProcessor):
    """The same draws in the generation of transformers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = self.sampling(scores, torch.arange(len(scores)), self.step)
        self.step += 1
        return drawn


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None,
) -> list[list[int]]:
    """The same by `model.generate`, with prompts padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[stop_ids[0]] * (width - len(p)) + list(p) for p in prompts])
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with _greedy(model, stop_ids):
        whole = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=seen.to(model.device),
            max_new_tokens=max_new_tokens,
            logits_processor=[_Noise(sampling)] if sampling is not None else [],
        )
    written = []
    for row in whole[:, width:].tolist():
        n = next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))
        written.append(row[:n])
    return written


@contextmanager
def _greedy(model: PreTrainedModel, stop_ids: Sequence[int]) -> Iterator[None]:
    """Let the model generate greedily, without the penalties and filters that it ships with."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    try:
        yield
    finally:
        model.generation_config = own
