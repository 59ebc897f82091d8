"""NanoLlama: a small Llama from scratch, its tokenizer, generation and agent."""

from itl_agents.nanollama.agent import NanoLlamaAgent
from itl_agents.nanollama.bpe import BPETokenizer, NanoTokenizer, open_tokenizer
from itl_agents.nanollama.files import load_model, save_model
from itl_agents.nanollama.generate import Generated, TurnMemory, generate
from itl_agents.nanollama.model import NanoLlama, NanoLlamaConfig
from itl_agents.nanollama.tokenizer import ByteTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Generated",
    "NanoLlama",
    "NanoLlamaAgent",
    "NanoLlamaConfig",
    "NanoTokenizer",
    "TurnMemory",
    "generate",
    "load_model",
    "open_tokenizer",
    "save_model",
]
