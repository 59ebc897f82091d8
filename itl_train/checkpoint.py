"""Checkpoints that appear whole or not at all, and are checked when they are read."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from itl_agents.nanollama import ByteTokenizer, NanoLlama, load_model, save_model
from itl_env.errors import ITLError

_STATE = "training.pt"
_PREFIX = "step-"


def save_checkpoint(
    folder: Path, step: int, model: NanoLlama, tokenizer: ByteTokenizer, state: dict[str, Any]
) -> Path:
    """Write `folder/step-<step>`: a Hugging Face model folder and the trainer's state.

    It is written under another name, flushed to disk, and renamed. There must be none of that step.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(model, partial)
    tokenizer.save(partial)
    torch.save(state, partial / _STATE)
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    partial.replace(final)
    _flush(folder)
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
    for old in checkpoints(folder)[:-n]:
        shutil.rmtree(old)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial)


def load_checkpoint(path: Path) -> tuple[NanoLlama, dict[str, Any]]:
    """The model and the trainer's state; raises ITLError for a broken checkpoint."""
    model = load_model(path)
    try:
        state = torch.load(path / _STATE, weights_only=True)
    except Exception as error:  # a truncated archive raises any of half a dozen types
        raise ITLError(f"Cannot read {path / _STATE}: {type(error).__name__}.") from None
    return model, state
