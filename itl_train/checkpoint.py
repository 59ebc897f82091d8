"""Checkpoints that appear whole or not at all, and are checked when they are read."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from itl_agents.nanollama import NanoLlama, NanoTokenizer, load_model, save_model
from itl_env.errors import ConfigError, ITLError
from itl_env.files import write_text

_STATE = "training.pt"
_DIGESTS = "digests.json"  # of every other file, for a flipped bit is not seen otherwise
_PREFIX = "step-"
Loaded = TypeVar("Loaded")
_OPTIMIZER = "optimizer.pt"  # of a trainer of transformers
_FOREIGN = "checkpoint-"  # with which a trainer of transformers names its own


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any] | None,
    write: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write `folder/step-<step>`: the trainer's state, and what `write` puts beside it.

    It is written under another name, flushed to disk, and renamed. There must be none of that step.

    Raises ITLError if it cannot be written, such as to a full disk; others are left as they were.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        if state is not None:
            torch.save(state, partial / _STATE)
        _seal(partial, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch does not say that it is the disk.
        full = shutil.disk_usage(folder).free < 2**20
        shutil.rmtree(partial, ignore_errors=True)
        why = "the disk is full" if full else str(error).splitlines()[0]
        raise ITLError(
            f"Cannot write the checkpoint {final} ({why}); the one before it is intact."
        ) from error
    return final


def adopt(folder: Path, step: int) -> Path:
    """Take in a checkpoint that a trainer of transformers has written: `folder/checkpoint-<step>`.

    It gets the name and the digests of ours. Raises ITLError if that cannot be written.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    partial = folder / f".{final.name}.partial"
    try:
        (folder / f"{_FOREIGN}{step}").replace(partial)
        if final.exists():  # of the same step, before an interruption
            shutil.rmtree(partial)
        else:
            _seal(partial, final)
    except OSError as error:
        raise ITLError(f"Cannot write the checkpoint {final}: {error.strerror}.") from error
    return final


def drop_optimizers(folder: Path, keep: int = 2) -> None:
    """Remove what only resuming needs, and takes most room, from all but the last checkpoints.

    keep: from how many it is not removed; the last one may be broken.
    """
    for path in checkpoints(folder)[:-keep]:
        if (path / _OPTIMIZER).exists():
            digests = json.loads((path / _DIGESTS).read_text(encoding="utf-8"))
            digests.pop(_OPTIMIZER, None)
            write_text(path / _DIGESTS, json.dumps(digests, indent=1) + "\n")
            (path / _OPTIMIZER).unlink()


def has_optimizer(checkpoint: Path) -> bool:
    """Whether training can go on from it as if it had not been interrupted."""
    return (checkpoint / _OPTIMIZER).exists()


def _seal(partial: Path, final: Path) -> None:
    """Note the digests of a written checkpoint, flush it to disk, and give it its name."""
    (partial / _DIGESTS).write_text(json.dumps(_digests(partial), indent=1) + "\n")
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    partial.replace(final)
    _flush(final.parent)


def _digests(folder: Path) -> dict[str, str]:
    """A hash of each of a checkpoint's files."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != _DIGESTS:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def _damage(folder: Path) -> str | None:
    """What of a checkpoint is not as it was written, if anything is known of that."""
    try:
        written = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return _DIGESTS
    there = _digests(folder)
    return next((name for name in written if there.get(name) != written[name]), None)


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def what_is_left(folder: Path) -> str:
    """A sentence on what a run that fails has saved."""
    found = checkpoints(folder)
    return f"The checkpoint {found[-1]} is intact." if found else "There is no checkpoint yet."


def check_whole(path: Path) -> None:
    """Raise ITLError if one of a checkpoint's files is not as it was written."""
    if name := _damage(path):
        raise ITLError(
            f"{path} is broken: {name} is not as it was written. Give the command that trained it "
            "again, which goes on from an earlier checkpoint, or name another one."
        )


def _remove(path: Path) -> None:
    """Remove a checkpoint, which must not look like a whole one if this is cut short."""
    hidden = path.with_name(f".{path.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    path.replace(hidden)
    shutil.rmtree(hidden)


def keep_last(folder: Path, n: int | None) -> None:
    """Remove all but the last n checkpoints, or none of them, and what interrupted writes left."""
    found = checkpoints(folder)
    for old in found[: max(0, len(found) - n)] if n is not None else ():
        _remove(old)
    for partial in (*folder.glob(".*.partial"), *folder.glob(f"{_FOREIGN}*")):
        shutil.rmtree(partial)


def check_finite(model: nn.Module, step: int, folder: Path) -> None:
    """Raise ITLError if a weight is not finite, and so nothing to be saved in `folder`."""
    if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        raise ITLError(
            f"The weights are not finite after step {step}; lower the learning rate. "
            f"{what_is_left(folder)}"
        )


def save_model_and_tokenizer(model: NanoLlama, tokenizer: NanoTokenizer, path: Path) -> None:
    """Write both as a Hugging Face model folder."""
    save_model(model, path)
    tokenizer.save(path)


def load_state(path: Path) -> dict[str, Any]:
    """The trainer's state; raises ITLError if it cannot be read.

    Raises ConfigError for one that never held a state: a model that was finished elsewhere.
    """
    if not (path / _STATE).exists():
        raise ConfigError(
            f"{path} holds a model that was trained in an ensemble: it can be asked, but training "
            "cannot go on from it."
        )
    try:
        return dict(torch.load(path / _STATE, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ITLError(f"Cannot read {path / _STATE}: {reason}") from None


def load_model_and_state(path: Path) -> dict[str, Any]:
    """The trainer's state, and under `model` the NanoLlama; raises what either reader raises."""
    state = load_state(path)
    return {"model": load_model(path), **state}


def newest(
    folder: Path, warn: Callable[[str], None], load: Callable[[Path], Loaded]
) -> Loaded | None:
    """What `load` gives of the newest checkpoint that is whole; None if there is none.

    Those after it are removed: they must neither count among those that are kept nor stand where a
    whole one will be written. What keeps a whole one from being read, such as too little memory, is
    raised.
    """
    whole, found = newest_whole(folder, warn), checkpoints(folder)
    if found and whole is None:
        warn("Training begins anew.")
    for path in found[found.index(whole) + 1 if whole is not None else 0 :]:
        _remove(path)
    return None if whole is None else load(whole)


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as they were written; of others it warns."""
    found = checkpoints(folder)
    for path in reversed(found):
        if (name := _damage(path)) is None:
            return path
        warn(
            f"The checkpoint {path} is broken: {name} is not as it was written; an earlier "
            "checkpoint is used, if there is one."
        )
    if found:
        warn(f"None of the checkpoints in {folder} is whole.")
    return None
