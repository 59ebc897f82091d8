"""Small models that runs of GRPO begin with."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaConfig, save_model

from ..itl_agents.chat_models import chat_tokenizer


def nano_folder(path: Path, seed: int = 0) -> Path:
    """A NanoLlama of random weights as a folder."""
    save_model(NanoLlama(NanoLlamaConfig(d_model=16, n_layers=1, n_heads=2), seed=seed), path)
    ByteTokenizer().save(path)
    return path


def qwen_folder(path: Path) -> Path:
    """A model of Qwen 3's shape and template, of random weights."""
    tokenizer = chat_tokenizer("qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
