"""Short names of models on the hub."""

from collections.abc import Mapping

HUB_IDS: Mapping[str, str] = {
    "smollm-135m": "HuggingFaceTB/SmolLM-135M-Instruct",
    "smollm-360m": "HuggingFaceTB/SmolLM-360M-Instruct",
    "smollm-1.7b": "HuggingFaceTB/SmolLM-1.7B-Instruct",
    "llama-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
}
"""Those of arXiv 2508.20755, section 6."""
