"""Checkpoints that appear whole or not at all, and are checked when they are read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from itl_agents.nanollama import NanoLlama, NanoTokenizer, load_model, save_model
from itl_env.errors import ConfigError, ITLError

_STATE = "training.pt"
_PREFIX = "step-"


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
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        partial.replace(final)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch does not say that it is the disk.
        full = shutil.disk_usage(folder).free < 2**20
        shutil.rmtree(partial, ignore_errors=True)
        why = "the disk is full" if full else str(error).splitlines()[0]
        raise ITLError(
            f"Cannot write the checkpoint {final} ({why}); the one before it is intact."
        ) from error
    return final


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


def keep_last(folder: Path, n: int) -> None:
    """Remove all but the last n checkpoints, and what an interrupted write left."""
    found = checkpoints(folder)
    for old in found[: max(0, len(found) - n)]:
        shutil.rmtree(old)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial)


def save_model_and_tokenizer(model: NanoLlama, tokenizer: NanoTokenizer, path: Path) -> None:
    """Write both as a Hugging Face model folder."""
    save_model(model, path)
    tokenizer.save(path)


def load_state(path: Path) -> dict[str, Any]:
    """The trainer's state; raises ITLError for a broken checkpoint.

    Raises ConfigError for one that never held a state: a model that was finished elsewhere.
    """
    if not (path / _STATE).exists():
        raise ConfigError(
            f"{path} holds a model that was trained in an ensemble: it can be asked, but training "
            "cannot go on from it."
        )
    try:
        return dict(torch.load(path / _STATE, weights_only=True))
    except Exception as error:  # a truncated archive raises any of half a dozen types
        raise ITLError(f"Cannot read {path / _STATE}: {type(error).__name__}.") from None


def load_model_and_state(path: Path) -> dict[str, Any]:
    """The trainer's state, and under `model` the NanoLlama; raises ITLError if either is broken."""
    state = load_state(path)
    return {"model": load_model(path), **state}


def newest(
    folder: Path,
    warn: Callable[[str], None],
    load: Callable[[Path], dict[str, Any]] = load_state,
) -> dict[str, Any] | None:
    """What `load` gives of the newest checkpoint that is whole; None if there is none.

    Broken ones are warned of and removed: they must neither count among those that are kept nor
    stand where a whole one will be written.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return load(path)
        except ConfigError:
            raise
        except ITLError as error:
            warn(f"{error} It is removed; an earlier checkpoint is used, if there is one.")
            shutil.rmtree(path)
    return None
