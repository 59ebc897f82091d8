"""Batched generation with a key-value cache: prompts of any lengths together, ended rows leave."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from itl_agents.nanollama.cache import KVCache
from itl_agents.sampling import Gumbel

ROOM = 32
"""Tokens by which a cache grows."""

ROWS = {"cpu": 512, "cuda": 4096}
"""Prompts side by side: on a CPU, the keys and values of more no longer stay near it."""


class Shape(Protocol):
    """What generation asks of a model's configuration."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens, of prompt and answer together."""
        ...

    @property
    def kv_shapes(self) -> Sequence[tuple[int, int]]:
        """Heads of keys and values of each layer, and their width."""
        ...


class LanguageModel(Protocol):
    """A model that can be generated from; see `NanoLlama`."""

    @property
    def config(self) -> Shape:
        """Its shape."""
        ...

    @property
    def embedding(self) -> nn.Parameter:
        """A number or more for each token; of the type and on the device of all weights."""
        ...

    @property
    def tokens_at_once(self) -> int:
        """How many tokens go through the model together without costing more each."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...

    def __call__(self, ids: Tensor, cache: KVCache, positions: Tensor | None = None) -> Tensor:
        """Logits of the next token, as `NanoLlama.forward` gives them."""
        ...


class Generated(NamedTuple):
    """New ids of one prompt, with the stop id if it was reached, and whether it was."""

    token_ids: list[int]
    stopped: bool


class TurnMemory:
    """Keys and values of the last turns, so that a dialogue's next turn reads only what is new.

    after: the ids that end a turn after which a dialogue goes on, such as the mark of a call. The
        prompt of the next turn then begins with the tokens of this one and that id.

    `generate` takes from it what it can and leaves the turns of its own call. Nothing is found once
    the weights have changed, and whatever is not found is read again.
    """

    def __init__(self, after: Sequence[int]) -> None:
        self.after = tuple(after)
        self._places: dict[tuple[int, ...], _Place] = {}
        self._weights = b""

    def take(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> "list[_Place | None]":
        """Where the beginning of each prompt is, if it is known; all is forgotten here."""
        weights = _digest(model)
        places = self._places if self._weights == weights else {}
        self._places, self._weights = {}, weights
        return [places.get(self._beginning(prompt)) for prompt in prompts] if places else []

    def put(self, sequences: Sequence[tuple[int, ...]], block: KVCache) -> None:
        """Remember each row of `block` as what was computed for its sequence."""
        self._places.update((ids, _Place(block, row)) for row, ids in enumerate(sequences))

    def _beginning(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """All before the end of the last turn."""
        for place in range(len(prompt) - 1, -1, -1):
            if prompt[place] in self.after:
                return tuple(prompt[:place])
        return ()


class _Place(NamedTuple):
    """A row of a cache."""

    block: KVCache
    row: int


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    memory: TurnMemory | None = None,
) -> list[Generated]:
    """Continue each prompt until it writes one of `stop_ids`, `max_new_tokens` ids, or as many as
    fit into the model's `max_length` tokens.

    temperature: 0 takes the likeliest id; above 0 ids are drawn from softmax(logits / temperature)
        with randomness that depends on the row's seed alone.
    seeds: one for each prompt; needed when temperature is above 0.
    memory: what the same model read and wrote in the turns before these.

    Raises ValueError for an empty prompt, one that leaves no room for a new token, missing seeds,
    or no new tokens.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
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
    known = (memory.take(model, prompts) if memory else []) or [None] * len(prompts)
    n_rows = ROWS.get(device.type, max(ROWS.values()))
    generated: dict[int, Generated] = {}
    # Prompts of one length side by side need no padding, and often answers of one length.
    order = lengths.argsort(stable=True).tolist()
    for start in range(0, len(prompts), n_rows):
        rows = order[start : start + n_rows]
        noise = None
        if temperature > 0 and seeds is not None:
            noise = Gumbel([seeds[row] for row in rows], model.config.vocabulary_size)
        new = _generate(
            model,
            [prompts[row] for row in rows],
            [known[row] for row in rows],
            stop_ids,
            max_new_tokens,
            temperature,
            noise,
            memory,
        )
        generated.update(zip(rows, new, strict=True))
    return [generated[row] for row in range(len(prompts))]


def _generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    known: "Sequence[_Place | None]",
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    noise: Gumbel | None,
    memory: TurnMemory | None,
) -> list[Generated]:
    """Continue these prompts side by side; see `generate`.

    known: where the beginning of each prompt has been read already.
    """
    device = model.embedding.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    limits = (model.config.max_length - lengths).clamp_max(max_new_tokens).to(device)
    longest = int(limits.max())
    logits, cache = _read(model, prompts, known)

    stops = torch.tensor(list(stop_ids), device=device)
    going_on = torch.tensor(memory.after if memory else (), dtype=torch.long, device=device)
    written = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    counts = limits.clone()
    live = torch.arange(len(prompts), device=device)  # the prompt that each row of the cache serves
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # by row of the cache
    left: list[tuple[Tensor, KVCache]] = []  # prompts whose dialogue will go on, and their rows
    for step in range(longest):
        if noise is not None:
            logits = logits / temperature + noise(live, step).to(logits)
        new = logits.argmax(dim=-1)
        written[live, step] = new
        ending = (torch.isin(new, stops) | (limits[live] == step + 1)) & ~ended
        counts[live[ending]] = step + 1
        ended |= ending
        n_ended = int(ended.sum())
        # Leaving costs a copy of the cache, so rows leave an eighth of the batch at a time.
        if n_ended * 8 >= len(live):
            last = written[live, counts[live] - 1]
            rows = (ended & torch.isin(last, going_on)).nonzero()[:, 0]
            if len(rows):
                # The last id was written, but not read.
                held = lengths.to(device)[live[rows]] + counts[live[rows]] - 1
                left.append((live[rows], cache.take(rows, held)))
            if n_ended == len(live):
                break
            stay = (~ended).nonzero()[:, 0]
            live, new, ended = live[stay], new[stay], ended[stay]
            cache.keep(stay)
        if int(cache.lengths.max()) == cache.capacity:
            cache.reserve(cache.capacity + ROOM)
        logits = model(new[:, None], cache)[:, 0]
        cache.lengths += 1
    ids = [row[:n] for row, n in zip(written.tolist(), counts.tolist(), strict=True)]
    if memory is not None:
        for rows, block in left:
            memory.put([(*prompts[row], *ids[row][:-1]) for row in rows.tolist()], block)
    stopping = set(stop_ids)
    return [Generated(new, new[-1] in stopping) for new in ids]


def _read(
    model: LanguageModel, prompts: Sequence[Sequence[int]], places: Sequence[_Place | None]
) -> tuple[Tensor, KVCache]:
    """Logits (batch, vocabulary) after each prompt, and a cache that holds the prompts.

    places: where their beginnings are, if they have been read before.
    """
    device = model.embedding.device
    known = [0 if place is None else int(place.block.lengths[place.row]) for place in places]
    new = [prompt[n:] for prompt, n in zip(prompts, known, strict=True)]
    width = max(map(len, new))
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in new], device=device)
    # Padding is written behind each row as well, so there must be room for it.
    capacity = max(known) + width + ROOM
    cache = KVCache(model.config.kv_shapes, len(prompts), capacity, model.embedding)
    for block in {id(place.block): place.block for place in places if place}.values():
        rows = [row for row, place in enumerate(places) if place and place.block is block]
        sources = [place.row for place in places if place and place.block is block]
        cache.put(rows, block, sources)
    n_new = torch.tensor([len(prompt) for prompt in new], device=device)
    last = torch.arange(len(prompts), device=device) * width + n_new - 1
    at_once = max(1, model.tokens_at_once // width)
    logits = []
    for start in range(0, len(prompts), at_once):
        part = slice(start, start + at_once)
        own = last[part] - start * width
        logits.append(model(ids[part], cache.part(part), positions=own))
    cache.lengths += n_new
    return torch.cat(logits), cache


def _digest(model: LanguageModel) -> bytes:
    """A hash of all weights. Version counters would not do: fused optimizers leave them alone."""
    found = hashlib.blake2b(digest_size=16)
    for weight in model.parameters():
        found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.digest()
