"""Which model a name means: of a run's folder, its last whole checkpoint. Loads no torch itself."""

import warnings
from functools import partial
from pathlib import Path

from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json
from itl_train.run_folder import run_settings

ORIGIN = "origin.json"  # in a run's folder: the model and the items that it began with


def find_checkpoint(folder: Path) -> Path:
    """The folder itself if it is a checkpoint, the last whole one if it is a run.

    Warns of damaged ones that a run has after that. Raises ConfigError if there is none or it is
    that of a whole ensemble, and ITLError if the folder is a damaged one itself.
    """
    from itl_train.checkpoint import check_whole, checkpoints, newest_whole

    if "members" in run_settings(folder):
        raise ConfigError(f"{folder} is of an ensemble; name one of its members, such as member-0.")
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        check_whole(folder)
        return folder
    if found := newest_whole(folder / "checkpoints", partial(warnings.warn, stacklevel=3)):
        return found
    if checkpoints(folder / "checkpoints"):
        raise ITLError(f"No checkpoint of {folder} is whole, so there is nothing to ask.")
    raise ConfigError(f"There is no trained model in {folder}; name a run's folder or checkpoint.")


def model_of(name: str | Path) -> str:
    """What `load_pretrained` takes; raises what `find_checkpoint` raises for a folder."""
    return str(find_checkpoint(Path(name))) if Path(name).is_dir() else str(name)


def begun_with(run: Path) -> str:
    """The checkpoint or model that a run of GRPO has begun with; "" if the folder does not say."""
    if not (run / ORIGIN).exists():
        return ""
    return str(read_json(run / ORIGIN, "Remove the folder, and train anew.")["model"])


def is_nanollama(checkpoint: Path) -> bool:
    """Whether a model's folder is that of a NanoLlama, by the marks of its tokenizer."""
    file = checkpoint / "tokenizer_config.json"
    if not (checkpoint / "config.json").is_file() or not file.is_file():
        return False
    return bool(read_json(file).get("eos_token") == "<|eod|>")
