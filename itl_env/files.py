"""Files that are seen whole or not at all."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itl_env.errors import ConfigError, ITLError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure.

    Raises ConfigError if `path` cannot be written.
    """
    path = Path(path)
    check_place(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise ConfigError if a file cannot be at `path`, for want of a folder, say."""
    if not path.parent.is_dir():
        raise ConfigError(
            f"Cannot write {path}: there is no folder {path.parent}, create it first."
        )
    if path.is_dir():
        raise ConfigError(f"Cannot write {path}: it is a folder, name a file in it.")


def read_json(path: Path, then: str = "") -> Any:
    """What a JSON file holds; raises ITLError that names it, and says what to do `then`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"Cannot read {path}: {error.strerror}."
        raise ITLError(" ".join([why, then]).rstrip()) from None
    except ValueError as error:
        raise ITLError(" ".join([f"{path} is damaged: {error}.", then]).rstrip()) from None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
