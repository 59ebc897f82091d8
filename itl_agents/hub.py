"""Names of models: what can be one, and the short names of some on the hub."""

import hashlib
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

ADAPTER = "adapter_config.json"
"""What a folder of a PEFT adapter holds."""


def lasting_name(name: str) -> str:
    """The name of a model as it may be kept: its path in full if it is here."""
    return str(Path(name).absolute()) if name not in HUB_IDS and Path(name).exists() else name


def fingerprint(name: str | Path) -> str:
    """What tells a model from others wherever it lies: of files a hash, else the name on the hub.

    A file is told by its name, its size, and its first and last MiB.
    """
    path = Path(name)
    if not path.exists():
        return HUB_IDS.get(str(name), str(name))
    found = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        if not file.is_file() or file.name.startswith("."):
            continue
        size = file.stat().st_size
        found.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            found.update(content.read(2**20))
            content.seek(max(0, size - 2**20))
            found.update(content.read())
    return found.hexdigest()


def check_pretrained(name: str) -> None:
    """Raise ConfigError for what cannot be a pretrained model, files and folders here included."""
    path = Path(name)
    if name in HUB_IDS:
        return
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError(f"{path} is no model; name a folder, a .gguf file or a hub id.")
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", ADAPTER)):
        raise ConfigError(f"{path} holds no model: there is no config.json in it.")
    check_model(name)


def may_be_of_the_hub(name: str) -> bool:
    """Whether a name is spelt OWNER/NAME and does not begin with a folder that is here."""
    owner = name.partition("/")[0]
    return _is_owner_and_name(name) and not name.endswith(".gguf") and not Path(owner).is_dir()


def _is_owner_and_name(name: str) -> bool:
    _, _, rest = name.partition("/")
    return bool(rest) and "/" not in rest and not name.startswith((".", "/", "~"))


def check_model(name: str, among: Iterable[str] = ()) -> None:
    """Raise ConfigError for what cannot be a model: no file or folder here, and no name of the hub.

    among: other names that would do. What begins with a folder that is here is meant to be here, so
    that a misspelt path is not looked for on the hub.
    """
    path = Path(name)
    if name in HUB_IDS or path.exists():
        return
    if may_be_of_the_hub(name):
        return
    if _is_owner_and_name(name):
        raise ConfigError(f"There is no {name} here.")
    others = ", ".join((*among, *HUB_IDS))
    raise ConfigError(
        f"There is no model {name!r}: it is no file or folder here, no OWNER/NAME of the hub, and "
        f"none of {others}."
    )
