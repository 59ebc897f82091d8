"""Small random decoders of the families that transcoders know."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from itl_agents.nanollama import NanoLlama, NanoLlamaConfig, save_model

FAMILIES = ("llama", "gemma2", "nanollama")
D_MODEL = 16


def decoder(family: str, folder: str = "") -> PreTrainedModel:
    """A model of 3 layers (a NanoLlama: 2) with 64 tokens or more, of which 1 begins texts."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": D_MODEL, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if family == "nanollama":
        save_model(
            NanoLlama(NanoLlamaConfig(d_model=D_MODEL, n_layers=2, n_heads=2), seed=0), folder
        )
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, sliding_window=64)).eval()
    with torch.no_grad():  # norms whose gain is not 1 tell the right site from others
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(std=0.5)
    return model
