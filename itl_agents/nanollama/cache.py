"""Keys and values of earlier tokens, for generation."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Keys and values of the tokens seen so far, for every layer.

    Rows of a batch may hold different numbers of tokens: `lengths` (batch,) counts them. Keys lie
    at their positions; what lies at and beyond a row's length is never attended to.

    shapes: heads and width of a head in each layer.

    layers: keys and values of each, (batch, capacity, heads, d_head). A row is one stretch of
        memory, so that rows are copied several times faster than from one tensor for all.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], batch: int, capacity: int, like: Tensor
    ) -> None:
        whole = [(batch, capacity, *shape) for shape in shapes]
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for shape in whole]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.layers[0][0].shape[1]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in each row."""
        more = capacity - self.capacity
        if more > 0:
            self.layers = [
                (F.pad(k, (0, 0, 0, 0, 0, more)), F.pad(v, (0, 0, 0, 0, 0, more)))
                for k, v in self.layers
            ]

    def take(self, rows: Tensor, lengths: Tensor) -> "KVCache":
        """A copy of the first `lengths` tokens of these rows (indices), in this order."""
        taken = copy.copy(self)
        taken.layers = [
            (_rows(k, rows, int(lengths.max())), _rows(v, rows, int(lengths.max())))
            for k, v in self.layers
        ]
        taken.lengths = lengths
        return taken

    def part(self, rows: slice) -> "KVCache":
        """These rows of the cache itself: what is written to them is written to it."""
        part = copy.copy(self)
        part.layers = [(k[rows], v[rows]) for k, v in self.layers]
        part.lengths = self.lengths[rows]
        return part

    def put(self, rows: list[int], other: "KVCache", sources: list[int]) -> None:
        """Write the rows `sources` of another cache into `rows` of this one."""
        held = int(other.lengths[sources].max())
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            for to, of in zip(ours, theirs, strict=True):
                to[rows, :held] = of[sources, :held]
        self.lengths[rows] = other.lengths[sources]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (indices), in this order."""
        capacity = self.capacity
        self.layers = [(_rows(k, rows, capacity), _rows(v, rows, capacity)) for k, v in self.layers]
        self.lengths = self.lengths[rows]


def _rows(memory: Tensor, rows: Tensor, n_tokens: int) -> Tensor:
    """A copy of the first tokens of some rows of memory (batch, capacity, heads, d_head)."""
    flat = memory.flatten(1)[:, : n_tokens * memory.shape[2:].numel()]
    return flat.index_select(0, rows).view(len(rows), n_tokens, *memory.shape[2:])


class Past(NamedTuple):
    """What one layer's attention sees of earlier tokens.

    keys, values: the cache of the layer. rows, places: where the new tokens go, (batch, 1) and
    (batch, seq). mask: (batch, 1, seq, held), 0 where a new token may look and -inf elsewhere; None
    where there are no earlier tokens, and new ones look at those before them.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    places: Tensor
    mask: Tensor | None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (batch, seq, heads, d_head) to their places; return all that is held."""
        if self.mask is None:
            self.keys[:, : k.shape[1]], self.values[:, : v.shape[1]] = k, v
            return k, v
        self.keys[self.rows, self.places] = k
        self.values[self.rows, self.places] = v
        held = self.mask.shape[-1]
        return self.keys[:, :held], self.values[:, :held]


def pasts(cache: KVCache, places: Tensor) -> list[Past]:
    """The past of each layer for new tokens at `places` (batch, seq)."""
    batch, seq = places.shape
    rows = torch.arange(batch, device=places.device)[:, None]
    mask = None
    if longest := int(cache.lengths.max()):
        hidden = torch.arange(longest + seq, device=places.device) > places[:, None, :, None]
        mask = cache.layers[0][0].new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return [Past(keys, values, rows, places, mask) for keys, values in cache.layers]
