"""NanoLlama: a small decoder-only Llama, written for speed on short dialogues.

RMSNorm before attention and feed-forward, rotary positions, causal attention with grouped
queries, SwiGLU of hidden width 4 d unless chosen otherwise, no biases, untied embeddings
(arXiv 2508.20755, section 5). With 2 layers, 2 heads and the byte vocabulary of 260 it has
P = 32 d^2 + 525 d parameters.

Its files are Hugging Face Llama files: `transformers.AutoModelForCausalLM.from_pretrained(folder)`
gives the same logits.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from itl_env.errors import ConfigError, ITLError


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

    def __post_init__(self) -> None:
        kv_heads = self.n_kv_heads if self.n_kv_heads is not None else self.n_heads
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
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
    def hidden_width(self) -> int:
        """Width of the feed-forward."""
        return self.d_hidden or 4 * self.d_model

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        d = self.d_model
        attention = 2 * d * d + 2 * d * self.kv_heads * self.d_head
        per_layer = attention + 3 * self.hidden_width * d + 2 * d
        return self.n_layers * per_layer + 2 * self.vocabulary_size * d + d


class KVCache:
    """Keys and values of the tokens seen so far, for every layer.

    Rows of a batch may hold different numbers of tokens: `lengths` (batch,) counts them. Keys lie
    at their positions; what lies at and beyond a row's length is never attended to.

    layers: keys and values of each, (batch, capacity, heads, d_head). A row is one stretch of
        memory, so that rows are copied several times faster than from one tensor for all.
    """

    def __init__(self, config: NanoLlamaConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (batch, capacity, config.kv_heads, config.d_head)
        self.layers = [
            (like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.n_layers)
        ]
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

    def put(self, rows: list[int], other: "KVCache", sources: list[int]) -> None:
        """Write the rows `sources` of another cache into `rows` of this one."""
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            for to, of in zip(ours, theirs, strict=True):
                to[rows, : of.shape[1]] = of[sources]
        self.lengths[rows] = other.lengths[sources]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (indices), in this order."""
        capacity = self.capacity
        self.layers = [(_rows(k, rows, capacity), _rows(v, rows, capacity)) for k, v in self.layers]
        self.lengths = self.lengths[rows]


def _rows(memory: Tensor, rows: Tensor, n_tokens: int) -> Tensor:
    """A copy of the first tokens of some rows of memory (batch, capacity, heads, d_head)."""
    flat = memory.flatten(1)[:, : n_tokens * memory[0, 0].numel()]
    return flat.index_select(0, rows).view(-1, n_tokens, *memory.shape[2:])


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised first and added to the stream."""

    def __init__(self, config: NanoLlamaConfig) -> None:
        super().__init__()
        d, d_kv = config.d_model, config.kv_heads * config.d_head
        self.config = config
        self.attention_norm = nn.Parameter(torch.ones(d))
        self.qkv = nn.Parameter(torch.empty(d + 2 * d_kv, d))  # queries, keys, values stacked
        self.out = nn.Parameter(torch.empty(d, d))
        self.mlp_norm = nn.Parameter(torch.ones(d))
        self.gate_up = nn.Parameter(torch.empty(2 * config.hidden_width, d))  # gate, up stacked
        self.down = nn.Parameter(torch.empty(d, config.hidden_width))

    def attend(self, x: Tensor, angles: tuple[Tensor, Tensor], past: "Past | None") -> Tensor:
        """Attention's addition to the residual stream x (batch, seq, d)."""
        config = self.config
        batch, seq, d = x.shape
        h = normalise(x, config.norm_epsilon)
        heads = F.linear(h, self.qkv * self.attention_norm).view(batch, seq, -1, config.d_head)
        # Queries and keys turn by the same angles, so they are rotated as one tensor.
        turning, v = heads.split((config.n_heads + config.kv_heads, config.kv_heads), dim=2)
        q, k = rotate(turning, *angles).split((config.n_heads, config.kv_heads), dim=2)
        if past is not None:
            k, v = past.extend(k, v)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if past is None else past.mask,
            is_causal=past is None,
            enable_gqa=config.kv_heads != config.n_heads,
        )
        return F.linear(out.transpose(1, 2).reshape(batch, seq, d), self.out)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward's addition to the residual stream x (batch, seq, d)."""
        h = normalise(x, self.config.norm_epsilon)
        gate, up = F.linear(h, self.gate_up * self.mlp_norm).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)


def normalise(x: Tensor, epsilon: float) -> Tensor:
    """Divide x (..., d) by its root mean square; there is no gain.

    Gains scale the columns of the matrix that comes next: that product is over d^2 numbers, not
    over every token.
    """
    if x.device.type == "cpu":
        normalised: Tensor = _Normalise.apply(x, epsilon)
        return normalised
    return F.rms_norm(x, x.shape[-1:], None, epsilon)


class _Normalise(torch.autograd.Function):
    """`F.rms_norm` in a third of its passes over memory; torch has no fused kernel for the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # dL/dx = scale (g - y <g, y> / d), for d(scale)/dx = -scale^2 y / d.
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y)[..., None].div_(-y.shape[-1])
        return torch.addcmul(gradient, y, along).mul_(scale), None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + d_head / 2) of x (batch, seq, heads, d_head) by its angle.

    cos, sin: (batch or 1, seq, 1, d_head); the first half of sin is negated.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


class Past(NamedTuple):
    """What one layer's attention sees of earlier tokens.

    keys, values: the cache of the layer. rows, places: where the new tokens go, (batch, 1) and
    (batch, seq). mask: (batch, 1, seq, held), 0 where a new token may look and -inf elsewhere.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    places: Tensor
    mask: Tensor

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (batch, seq, heads, d_head) to their places; return all that is held."""
        self.keys[self.rows, self.places] = k
        self.values[self.rows, self.places] = v
        held = self.mask.shape[-1]
        return self.keys[:, :held], self.values[:, :held]


def _pasts(cache: KVCache, places: Tensor) -> list[Past]:
    """The past of each layer for new tokens at `places` (batch, seq)."""
    batch, seq = places.shape
    rows = torch.arange(batch, device=places.device)[:, None]
    held = torch.arange(int(cache.lengths.max()) + seq, device=places.device)
    hidden = held > places[:, None, :, None]
    like = cache.layers[0][0]
    mask = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return [Past(keys, values, rows, places, mask) for keys, values in cache.layers]


class NanoLlama(nn.Module):
    """The model; `forward` gives logits (batch, seq, vocabulary).

    seed, zero_residual: see `initialise`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: NanoLlamaConfig, seed: int = 0, *, zero_residual: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embedding = nn.Parameter(torch.empty(config.vocabulary_size, d))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.Parameter(torch.ones(d))
        self.head = nn.Parameter(torch.empty(config.vocabulary_size, d))
        cos, sin = _angles(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise(seed, zero_residual=zero_residual)

    @torch.no_grad()
    def initialise(self, seed: int, *, zero_residual: bool = False) -> None:
        """Draw matrices normal with std d^-0.5 cut at three std; gains are 1.

        zero_residual: set to zero what writes into the residual stream, so that every block begins
            by adding nothing (Goyal et al. 2017, arXiv 1706.02677, do so with a residual block's
            last gain).
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.d_model**-0.5
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                nn.init.trunc_normal_(
                    parameter, std=std, a=-3 * std, b=3 * std, generator=generator
                )
        if zero_residual:
            for block in self.blocks:
                assert isinstance(block, Block)
                block.out.zero_()
                block.down.zero_()

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token.

        ids: (batch, seq) token ids. Without a cache, rows are padded on the right, if at all:
            causal attention then never looks at padding.
        cache: what came before; ids are appended to it at each row's own length. The caller
            advances `cache.lengths` by the true number of new tokens in each row.
        positions: flat indices into (batch * seq); only these get logits, (len(positions), vocab).
        """
        seq = ids.shape[1]
        pasts: list[Past] | None = None
        if cache is None:
            angles = (self.cos[:, :seq], self.sin[:, :seq])
        else:
            places = cache.lengths[:, None] + torch.arange(seq, device=ids.device)
            pasts = _pasts(cache, places)
            places = places.clamp_max(self.config.max_length - 1)  # beyond it lies padding
            angles = (self.cos[0, places], self.sin[0, places])
        x = F.embedding(ids, self.embedding)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = x + block.attend(x, angles, None if pasts is None else pasts[layer])
            if positions is not None and layer == self.config.n_layers - 1:
                x = x.flatten(0, 1)[positions]  # what follows is needed nowhere else
            x = x + block.feed_forward(x)
        return F.linear(normalise(x, self.config.norm_epsilon), self.head * self.norm)


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


def save_model(model: NanoLlama, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` as a Hugging Face Llama in float32."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    description = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        # The mark that ends a call also ends the assistant's turn.
        "eos_token_id": [config.vocabulary_size - 1, config.vocabulary_size - 2],
        "bos_token_id": None,
        "pad_token_id": config.vocabulary_size - 1,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(description, indent=1))
    weights = {name: weight.contiguous().float().cpu() for name, weight in _llama_weights(model)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: str | Path) -> NanoLlama:
    """Read a NanoLlama from a folder written by `save_model`, or any Llama of that shape.

    Raises ITLError if files are missing or broken, or the Llama has parts that NanoLlama lacks.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ITLError(f"Cannot load a model from {folder}: {error}.") from None
    config = _read_config(description, folder)
    model = NanoLlama(config)
    own = dict(_llama_weights(model))
    if missing := sorted(set(own) ^ set(weights)):
        raise ITLError(f"{folder} is not a NanoLlama: weight {missing[0]} is missing or extra.")
    with torch.no_grad():
        for name, place in own.items():
            if place.shape != weights[name].shape:
                raise ITLError(f"{folder} is not a NanoLlama: {name} has another shape.")
            place.copy_(weights[name])
    return model


def _read_config(description: dict[str, object], folder: Path) -> NanoLlamaConfig:
    def number(key: str) -> int:
        value = description.get(key)
        if not isinstance(value, int):
            raise ITLError(f"{folder}/config.json is not a Llama's: {key} is {value!r}.")
        return value

    unlike = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
    for key, expected in unlike.items():
        if description.get(key, expected) != expected:
            raise ITLError(f"{folder} is not a NanoLlama: {key} is {description[key]!r}.")
    rope = description.get("rope_parameters") or {}
    assert isinstance(rope, dict)
    return NanoLlamaConfig(
        d_model=number("hidden_size"),
        n_layers=number("num_hidden_layers"),
        n_heads=number("num_attention_heads"),
        n_kv_heads=number("num_key_value_heads"),
        d_hidden=number("intermediate_size"),
        vocabulary_size=number("vocab_size"),
        max_length=number("max_position_embeddings"),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        norm_epsilon=float(str(description.get("rms_norm_eps", 1e-5))),
    )


def _llama_weights(model: NanoLlama) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its Hugging Face name; views of the model's own parameters."""
    config = model.config
    d, d_kv = config.d_model, config.kv_heads * config.d_head
    yield "model.embed_tokens.weight", model.embedding.data
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        at = f"model.layers.{layer}"
        q, k, v = block.qkv.data.split((d, d_kv, d_kv))
        gate, up = block.gate_up.data.chunk(2)
        yield f"{at}.input_layernorm.weight", block.attention_norm.data
        yield f"{at}.self_attn.q_proj.weight", q
        yield f"{at}.self_attn.k_proj.weight", k
        yield f"{at}.self_attn.v_proj.weight", v
        yield f"{at}.self_attn.o_proj.weight", block.out.data
        yield f"{at}.post_attention_layernorm.weight", block.mlp_norm.data
        yield f"{at}.mlp.gate_proj.weight", gate
        yield f"{at}.mlp.up_proj.weight", up
        yield f"{at}.mlp.down_proj.weight", block.down.data
    yield "model.norm.weight", model.norm.data
    yield "lm_head.weight", model.head.data
