"""NanoLlama: a small Llama from scratch, its tokenizer, generation and agent."""

from itl_agents.nanollama.agent import NanoLlamaAgent
from itl_agents.nanollama.files import load_model, save_model
from itl_agents.nanollama.generate import Generated, TurnMemory, generate
from itl_agents.nanollama.model import NanoLlama, NanoLlamaConfig
from itl_agents.nanollama.tokenizer import ByteTokenizer

__all__ = [
    "ByteTokenizer",
    "Generated",
    "NanoLlama",
    "NanoLlamaAgent",
    "NanoLlamaConfig",
    "TurnMemory",
    "generate",
    "load_model",
    "save_model",
]
