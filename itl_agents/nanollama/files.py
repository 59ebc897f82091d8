"""NanoLlama's files, which are Hugging Face Llama files.

`transformers.AutoModelForCausalLM.from_pretrained(folder)` gives the same logits.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from itl_agents.nanollama.model import Block, NanoLlama, NanoLlamaConfig
from itl_env.errors import ITLError


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
        "attention_bias": config.qkv_bias,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied_embeddings,
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
    # A Llama with biases has one on attention's output too, where NanoLlama has none.
    for name in [name for name in weights if name.endswith("o_proj.bias")]:
        if weights[name].any():
            raise ITLError(f"{folder} is not a NanoLlama: {name} is not zero.")
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

    # Older files keep the rotary base beside the rest, and say of no scaling that it is null.
    rope = description.get("rope_parameters") or description
    assert isinstance(rope, dict)
    expected = {
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_scaling": None,
        "rope_type": "default",
    }
    for key, value in expected.items():
        there = {**rope, **description}.get(key, value)
        if there != value:
            raise ITLError(f"{folder} is not a NanoLlama: {key} is {there!r}.")
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
        tied_embeddings=bool(description.get("tie_word_embeddings", False)),
        qkv_bias=bool(description.get("attention_bias", False)),
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
        if block.qkv_bias is not None:
            q, k, v = block.qkv_bias.data.split((d, d_kv, d_kv))
            yield f"{at}.self_attn.q_proj.bias", q
            yield f"{at}.self_attn.k_proj.bias", k
            yield f"{at}.self_attn.v_proj.bias", v
            yield f"{at}.self_attn.o_proj.bias", torch.zeros_like(block.out.data[0])
        yield f"{at}.post_attention_layernorm.weight", block.mlp_norm.data
        yield f"{at}.mlp.gate_proj.weight", gate
        yield f"{at}.mlp.up_proj.weight", up
        yield f"{at}.mlp.down_proj.weight", block.down.data
    yield "model.norm.weight", model.norm.data
    if not config.tied_embeddings:
        yield "lm_head.weight", model.own_head.data
