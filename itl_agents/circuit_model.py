"""A transformer whose weights are written down instead of trained: its blocks, and plans of them.

The stream of a token is a set of named registers. A plan says in terms of registers where heads
look and what they bring (`Head`), and when hidden units of a feed-forward fire and what they add
(`Unit`); `Circuit.of` turns plans into the matrices of an ordinary transformer: softmax attention
with biases, ReLU feed-forward, both added to the stream, no normalisation, and one table of tokens
for reading and writing. What the plans of `itl_agents.circuit` compute is explained there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itl_agents.nanollama.cache import KVCache, Past, pasts

D_HEAD = 2
MOST_WEIGHTS = 2**25
"""Of attention that a block may hold at once: 128 MB."""
ONE = ""
"""The name of the constant 1 among the terms of a sum; its weight is a bias."""


@dataclass(frozen=True)
class Linear:
    """A weighted sum of registers and a constant: what one row of a matrix reads, or writes."""

    terms: Mapping[str, float]

    def __add__(self, other: "Linear | float") -> "Linear":
        more = other.terms if isinstance(other, Linear) else {ONE: other}
        names = dict.fromkeys([*self.terms, *more])
        return Linear({name: self.terms.get(name, 0) + more.get(name, 0) for name in names})

    def __mul__(self, factor: float) -> "Linear":
        return Linear({name: factor * weight for name, weight in self.terms.items()})

    def __sub__(self, other: "Linear | float") -> "Linear":
        return self + other * -1

    def __rsub__(self, other: float) -> "Linear":
        return self * -1 + other

    __radd__ = __add__
    __rmul__ = __mul__


def register(name: str) -> Linear:
    """What a register holds."""
    return Linear({name: 1.0})


def constant(value: float) -> Linear:
    """The same number everywhere."""
    return Linear({ONE: value})


class Head(NamedTuple):
    """An attention head: it looks from `query` at the place whose `key` agrees most with it.

    value: what it brings from there; adds: where each of these numbers is added.
    """

    name: str
    query: Sequence[Linear]
    key: Sequence[Linear]
    value: Sequence[Linear]
    adds: Sequence[Linear]


class Unit(NamedTuple):
    """A hidden unit of a feed-forward: where `when` is above 0, it adds that many times `adds`."""

    when: Linear
    adds: Linear


class Plan(NamedTuple):
    """A block: heads, then units; `always` is added at every place."""

    heads: Sequence[Head]
    units: Sequence[Unit]
    always: Linear = Linear({})

    def registers(self) -> Iterable[str]:
        """Those that are written."""
        added = [each for head in self.heads for each in head.adds]
        for sums in (*added, *(unit.adds for unit in self.units), self.always):
            yield from sums.terms


@dataclass(frozen=True)
class CircuitShape:
    """The shape of a circuit."""

    registers: tuple[str, ...]  # of the residual stream
    heads: tuple[tuple[str, ...], ...]  # of each block, by name
    units: tuple[int, ...]  # hidden units of each block
    vocabulary_size: int
    max_length: int  # tokens of a dialogue

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return len(self.registers)

    @property
    def n_blocks(self) -> int:
        """Blocks of attention and feed-forward."""
        return len(self.heads)

    @property
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Heads of each block, and their width."""
        return [(len(names), D_HEAD) for names in self.heads]


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream."""

    def __init__(self, d_model: int, n_heads: int, n_units: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        width = n_heads * D_HEAD
        self.qkv = _zeros(3 * width, d_model)  # queries, keys, values stacked
        self.qkv_bias = _zeros(3 * width)
        self.out = _zeros(d_model, width)
        self.up = _zeros(n_units, d_model)
        self.up_bias = _zeros(n_units)
        self.down = _zeros(d_model, n_units)
        self.down_bias = _zeros(d_model)

    def forward(self, x: Tensor, past: Past | None) -> tuple[Tensor, Tensor]:
        """The stream x (batch, seq, d) after the block, and the weights of attention, (batch,
        heads, seq, held).
        """
        batch, seq, _ = x.shape
        heads = F.linear(x, self.qkv, self.qkv_bias).view(batch, seq, 3, self.n_heads, D_HEAD)
        q, k, v = heads.unbind(2)
        mask = None
        if past is not None:
            (k, v), mask = past.extend(k, v), past.mask
        if mask is None:
            mask = torch.full((seq, seq), -torch.inf, dtype=x.dtype, device=x.device).triu_(1)
        # Scores are whole numbers so long as nothing is rescaled: the factor 1/sqrt(d_head) of the
        # usual formula is a part of the queries' weights.
        scores = mask
        for q_i, k_i in zip(_columns(q), _columns(k), strict=True):
            scores = torch.addcmul(scores, q_i[..., :, None], k_i[..., None, :])
        weights = scores.softmax(dim=-1)
        # Products of so narrow matrices take several times as long as sums of their columns.
        brought = [(weights * v_i[..., None, :]).sum(dim=-1) for v_i in _columns(v)]
        heads = torch.stack(brought, dim=-1).transpose(1, 2)
        x = x + F.linear(heads.reshape(batch, seq, self.n_heads * D_HEAD), self.out)
        hidden = F.linear(x, self.up, self.up_bias).relu()
        return x + F.linear(hidden, self.down, self.down_bias), weights


class Circuit(nn.Module):
    """The transformer. Its weights are parameters like any other's; `of` sets them.

    Tokens are read as the two numbers of their row in `embedding`, places as (p, p^2), and `read`
    puts both into registers. `write` makes two numbers of the stream, whose inner products with
    the rows of `embedding` are the logits.
    """

    def __init__(self, config: CircuitShape) -> None:
        super().__init__()
        self.config = config
        self.embedding = _zeros(config.vocabulary_size, 2)
        self.read = _zeros(config.d_model, 4)
        self.blocks = nn.ModuleList(
            Block(config.d_model, len(heads), n_units)
            for heads, n_units in zip(config.heads, config.units, strict=True)
        )
        self.write = _zeros(2, config.d_model)
        self.write_bias = _zeros(2)

    @classmethod
    def of(
        cls,
        embedding: Tensor,
        reads: Sequence[Linear],
        plans: Sequence[Plan],
        writes: Sequence[Linear],
        max_length: int,
    ) -> "Circuit":
        """The circuit of plans.

        embedding: (vocabulary, 2). reads: where the numbers of a token and of a place are put.
        writes: the two numbers that logits are made of.
        """
        written = [name for sums in reads for name in sums.terms]
        written += [name for plan in plans for name in plan.registers()]
        config = CircuitShape(
            registers=tuple(dict.fromkeys(written)),
            heads=tuple(tuple(head.name for head in plan.heads) for plan in plans),
            units=tuple(len(plan.units) for plan in plans),
            vocabulary_size=len(embedding),
            max_length=max_length,
        )
        circuit = cls(config)
        with torch.no_grad():
            circuit.embedding.copy_(embedding)
            circuit.read.copy_(circuit._matrix(reads)[0].T)
            for block, plan in zip(circuit.blocks, plans, strict=True):
                assert isinstance(block, Block)
                circuit._set(block, plan)
            matrix, bias = circuit._matrix(writes)
            circuit.write.copy_(matrix)
            circuit.write_bias.copy_(bias)
        return circuit

    def _set(self, block: Block, plan: Plan) -> None:
        asked = [part for part in ("query", "key", "value") for _ in plan.heads]
        rows = [
            sums
            for part, head in zip(asked, [*plan.heads] * 3, strict=True)
            for sums in _padded(getattr(head, part))
        ]
        targets = [sums for head in plan.heads for sums in _padded(head.adds)]
        for weights, bias, sums in (
            (block.qkv, block.qkv_bias, rows),
            (block.up, block.up_bias, [unit.when for unit in plan.units]),
        ):
            matrix, constants = self._matrix(sums)
            weights.copy_(matrix)
            bias.copy_(constants)
        block.out.copy_(self._matrix(targets)[0].T)
        block.down.copy_(self._matrix([unit.adds for unit in plan.units])[0].T)
        block.down_bias.copy_(self._matrix([plan.always])[0][0])

    def _matrix(self, rows: Sequence[Linear]) -> tuple[Tensor, Tensor]:
        """The weights (rows, d) and constants (rows,) of sums."""
        places = {name: place for place, name in enumerate(self.config.registers)}
        matrix, constants = torch.zeros(len(rows), len(places)), torch.zeros(len(rows))
        for row, sums in enumerate(rows):
            for name, weight in sums.terms.items():
                if name == ONE:
                    constants[row] = weight
                else:
                    matrix[row, places[name]] = weight
        return matrix, constants

    @property
    def n_parameters(self) -> int:
        """Entries of all matrices and biases."""
        return sum(weights.numel() for weights in self.parameters())

    @property
    def n_nonzero(self) -> int:
        """Those of them that are not zero."""
        return sum(int(weights.count_nonzero()) for weights in self.parameters())

    @property
    def tokens_at_once(self) -> int:
        """How many tokens go through the model together, for attention to fit into memory."""
        return max(1, MOST_WEIGHTS // (self.config.max_length * max(map(len, self.config.heads))))

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token, (batch, seq, vocabulary); see `NanoLlama.forward`.

        ids: (batch, seq). cache: what came before. positions: flat indices of the only places that
        get logits, (n, vocabulary).
        """
        x, _ = self._stream(ids, cache)
        if positions is not None:
            x = x.flatten(0, 1)[positions]
        return F.linear(x, self.write, self.write_bias) @ self.embedding.T

    def attention(self, ids: Tensor) -> list[Tensor]:
        """Where each block's heads look in dialogues ids (batch, seq): (batch, heads, seq, seq)."""
        return self._stream(ids, None)[1]

    def _stream(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, list[Tensor]]:
        """The stream after the last block, and the attention of each block."""
        batch, seq = ids.shape
        places = torch.arange(seq, device=ids.device).expand(batch, seq)
        past: Sequence[Past | None] = [None] * len(self.blocks)
        if cache is not None:
            places = places + cache.lengths[:, None]
            past = pasts(cache, places)
        place = places.to(self.embedding.dtype)
        seen = torch.cat((F.embedding(ids, self.embedding), place[..., None]), dim=-1)
        x = F.linear(torch.cat((seen, place.square()[..., None]), dim=-1), self.read)
        maps = []
        for block, before in zip(self.blocks, past, strict=True):
            x, weights = block(x, before)
            maps.append(weights)
        return x, maps


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def _columns(x: Tensor) -> Sequence[Tensor]:
    """Each number of every head of x (batch, seq, heads, D_HEAD), (batch, heads, seq)."""
    return x.transpose(1, 2).unbind(-1)


def _padded(sums: Sequence[Linear]) -> list[Linear]:
    return [*sums, *[Linear({})] * (D_HEAD - len(sums))]
