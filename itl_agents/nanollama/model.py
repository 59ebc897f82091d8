"""NanoLlama: a small decoder-only Llama, written for speed on short dialogues.

RMSNorm before attention and feed-forward, rotary positions, causal attention with grouped
queries, SwiGLU of hidden width 4 d, no biases, untied embeddings (arXiv 2508.20755, section 5),
unless chosen otherwise. With 2 layers, 2 heads and the byte vocabulary of 260 it has
P = 32 d^2 + 525 d parameters.

An ensemble is one model whose weights carry a leading member axis: members share their shape and
the steps of training, and nothing else.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itl_agents.nanollama.cache import KVCache, Past, pasts
from itl_agents.nanollama.ops import attend, normalise, project, swiglu, turn
from itl_env.errors import ConfigError

NUMBERS_AT_ONCE = 7_000_000
"""On a CPU, in the largest activation, that of the feed-forward: beyond 32 MB, glibc asks the
system for the memory of each tensor anew."""


@dataclass(frozen=True)
class NanoLlamaConfig:
    """The shape of a NanoLlama."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int | None = None  # heads of keys and values; as many as n_heads by default
    d_hidden: int | None = None  # width of the feed-forward; 4 d_model by default
    vocabulary_size: int = 260
    max_length: int = 512  # tokens, of prompt and answer together
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = False  # one matrix both reads tokens and writes them
    qkv_bias: bool = False  # biases of queries, keys and values

    def __post_init__(self) -> None:
        kv_heads = self.n_kv_heads if self.n_kv_heads is not None else self.n_heads
        for name, value in asdict(self).items():
            if value is not None and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive.")
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} does not divide by n_heads {self.n_heads}.")
        if self.n_heads % kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} does not divide by n_kv_heads {kv_heads}.")
        if self.d_head % 2:
            raise ConfigError(
                f"d_model / n_heads is {self.d_head}; rotary positions need an even head width."
            )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Heads of keys and values of each layer, and their width."""
        return [(self.kv_heads, self.d_head)] * self.n_layers

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward."""
        return self.d_hidden or 4 * self.d_model

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        d = self.d_model
        d_kv = self.kv_heads * self.d_head
        attention = 2 * d * d + 2 * d * d_kv + (d + 2 * d_kv if self.qkv_bias else 0)
        per_layer = attention + 3 * self.hidden_width * d + 2 * d
        tables = 1 if self.tied_embeddings else 2
        return self.n_layers * per_layer + tables * self.vocabulary_size * d + d


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised first and added to the stream."""

    def __init__(self, config: NanoLlamaConfig, members: tuple[int, ...] = ()) -> None:
        super().__init__()
        d, d_kv = config.d_model, config.kv_heads * config.d_head

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*members, *shape))

        self.config = config
        self.attention_norm = weights(d)
        self.qkv = weights(d + 2 * d_kv, d)  # queries, keys, values stacked
        self.qkv_bias = weights(d + 2 * d_kv) if config.qkv_bias else None
        self.out = weights(d, d)
        self.mlp_norm = weights(d)
        self.gate_up = weights(2 * config.hidden_width, d)  # gate, up stacked
        self.down = weights(d, config.hidden_width)

    def attend(self, x: Tensor, angles: tuple[Tensor, Tensor], past: "Past | None") -> Tensor:
        """Attention's addition to the residual stream x (batch, seq, d)."""
        config = self.config
        batch, seq, d = x.shape
        h = normalise(x, config.norm_epsilon)
        heads = project(h, self.qkv, self.attention_norm, self.qkv_bias)
        heads = heads.view(batch, seq, -1, config.d_head)
        q, k, v = turn(heads, *angles, config.n_heads)
        if past is not None:
            k, v = past.extend(k, v)
        out = attend(q, k, v, None if past is None else past.mask)
        return project(out.reshape(batch, seq, d), self.out)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward's addition to the residual stream x (batch, seq, d)."""
        h = normalise(x, self.config.norm_epsilon)
        return project(swiglu(project(h, self.gate_up, self.mlp_norm)), self.down)


class NanoLlama(nn.Module):
    """The model, or an ensemble of models.

    seed: of the initialisation; a sequence of seeds makes an ensemble, whose member i is drawn as
        the model of the i-th seed.
    zero_residual: see `initialise`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: NanoLlamaConfig, seed: int | Sequence[int] = 0, *, zero_residual: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.n_members = None if isinstance(seed, int) else len(seed)
        members = () if isinstance(seed, int) else (len(seed),)
        d = config.d_model
        self.embedding = nn.Parameter(torch.empty(*members, config.vocabulary_size, d))
        self.blocks = nn.ModuleList(Block(config, members) for _ in range(config.n_layers))
        self.norm = nn.Parameter(torch.empty(*members, d))
        if not config.tied_embeddings:
            self.own_head = nn.Parameter(torch.empty(*members, config.vocabulary_size, d))
        cos, sin = _angles(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for weights, own in zip(
            self.by_member(), [seed] if isinstance(seed, int) else seed, strict=True
        ):
            _initialise(weights, own, config, zero_residual=zero_residual)

    @property
    def head(self) -> nn.Parameter:
        """The matrix that writes tokens, ([members,] vocabulary, d)."""
        return self.embedding if self.config.tied_embeddings else self.own_head

    @property
    def tokens_at_once(self) -> int:
        """How many tokens go through the model together without costing more each."""
        if self.embedding.device.type != "cpu":
            return sys.maxsize
        return max(1, NUMBERS_AT_ONCE // (2 * self.config.hidden_width))

    def by_member(self) -> list[dict[str, Tensor]]:
        """The weights of each member (of the one model, if it is no ensemble), by name; views."""
        named = {name: weights.data for name, weights in self.named_parameters()}
        if self.n_members is None:
            return [named]
        return [{name: w[i] for name, w in named.items()} for i in range(self.n_members)]

    def member(self, index: int) -> "NanoLlama":
        """A copy of one member as a model of its own."""
        model = NanoLlama(self.config)
        model.load_state_dict(self.by_member()[index])
        return model.to(self.embedding.device)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        probe: Callable[[str, Tensor], None] = lambda name, x: None,
    ) -> Tensor:
        """Logits of the next token, (batch, seq, vocabulary).

        ids: (batch, seq) token ids. Without a cache, rows are padded on the right, if at all:
            causal attention then never looks at padding.
        cache: what came before; ids are appended to it at each row's own length. The caller
            advances `cache.lengths` by the true number of new tokens in each row.
        positions: (n,) flat indices into (batch * seq); only these get logits, (n, vocabulary).
        probe: shown the residual stream and what each block adds to it, by name.

        An ensemble takes ids (members, batch, seq) and positions (members, n), and its logits have
        a leading member axis; it takes no cache.
        """
        lead, seq = ids.shape[:-1], ids.shape[-1]
        past: list[Past] | None = None
        if cache is None:
            angles = (self.cos[:, :seq], self.sin[:, :seq])
        else:
            places = cache.lengths[:, None] + torch.arange(seq, device=ids.device)
            past = pasts(cache, places)
            places = places.clamp_max(self.config.max_length - 1)  # beyond it lies padding
            angles = (self.cos[0, places], self.sin[0, places])
        if self.n_members is not None:
            # One table of all members' embeddings; members lie side by side in the batch.
            ids = (ids + self._offsets(self.config.vocabulary_size)[:, None]).flatten(0, 1)
            if positions is not None:
                positions = (positions + self._offsets(lead[1] * seq)).flatten()
        x = F.embedding(ids, self.embedding.flatten(0, -2))
        probe("embedding", x)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            added = block.attend(x, angles, None if past is None else past[layer])
            probe(f"blocks.{layer}.attention", added)
            x = x + added
            if positions is not None and layer == self.config.n_layers - 1:
                x = x.flatten(0, 1)[positions]  # what follows is needed nowhere else
            added = block.feed_forward(x)
            probe(f"blocks.{layer}.feed_forward", added)
            x = x + added
            probe(f"blocks.{layer}", x)
        logits = project(normalise(x, self.config.norm_epsilon), self.head, self.norm)
        if self.n_members is None:
            return logits
        shape = (*lead[1:], seq) if positions is None else (-1,)
        return logits.view(self.n_members, *shape, logits.shape[-1])

    def _offsets(self, stride: int) -> Tensor:
        """Where each member's share begins, (members, 1)."""
        assert self.n_members is not None
        return torch.arange(self.n_members, device=self.embedding.device)[:, None] * stride


@torch.no_grad()
def _initialise(
    weights: Mapping[str, Tensor], seed: int, config: NanoLlamaConfig, *, zero_residual: bool
) -> None:
    """Draw matrices normal with std d^-0.5 cut at three std; gains are 1, biases 0.

    zero_residual: set to zero what writes into the residual stream, so that every block begins by
        adding nothing (Goyal et al. 2017, arXiv 1706.02677, do so with a residual block's last
        gain).
    """
    generator = torch.Generator().manual_seed(seed)
    std = config.d_model**-0.5
    for name, weight in weights.items():
        if weight.ndim == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        # Drawn even where it is then set to zero, so that the others are the same either way.
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)
        if zero_residual and name.endswith((".out", ".down")):
            weight.zero_()


def _angles(config: NanoLlamaConfig) -> tuple[Tensor, Tensor]:
    """Cos and signed sin of every position's rotary angles, each (1, max_length, 1, d_head)."""
    exponents = torch.arange(0, config.d_head, 2, dtype=torch.float32) / config.d_head
    angles = torch.outer(
        torch.arange(config.max_length, dtype=torch.float32), 1.0 / config.rope_theta**exponents
    )
    cos, sin = angles.cos(), angles.sin()
    return (
        torch.cat((cos, cos), dim=-1)[None, :, None],
        torch.cat((-sin, sin), dim=-1)[None, :, None],
    )
