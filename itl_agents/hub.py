"""Names of models: what can be one, and the short names of some on the hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from itl_env.errors import ConfigError

HUB_IDS: Mapping[str, str] = {
    "smollm-135m": "HuggingFaceTB/SmolLM-135M-Instruct",
    "smollm-360m": "HuggingFaceTB/SmolLM-360M-Instruct",
    "smollm-1.7b": "HuggingFaceTB/SmolLM-1.7B-Instruct",
    "llama-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
}
"""Those of arXiv 2508.20755, section 6."""


def lasting_name(name: str) -> str:
    """The name of a model as it may be kept: its path in full if it is here."""
    return str(Path(name).absolute()) if name not in HUB_IDS and Path(name).exists() else name


def check_model(name: str, among: Iterable[str] = ()) -> None:
    """Raise ConfigError for what cannot be a model: no file or folder here, and no name of the hub.

    among: other names that would do. What begins with a folder that is here is meant to be here, so
    that a misspelt path is not looked for on the hub.
    """
    path = Path(name)
    if name in HUB_IDS or path.exists():
        return
    owner, _, rest = name.partition("/")
    if rest and "/" not in rest and not name.startswith((".", "/", "~")):
        if path.suffix != ".gguf" and not Path(owner).is_dir():
            return
        raise ConfigError(f"There is no {name} here.")
    others = ", ".join((*among, *HUB_IDS))
    raise ConfigError(
        f"There is no model {name!r}: it is no file or folder here, no OWNER/NAME of the hub, and "
        f"none of {others}."
    )
