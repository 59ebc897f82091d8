"""JSON values of a file, each with where it is: JSON lines or one JSON array, also compressed."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itl_env.errors import ConfigError


def read_json_rows(file: str | Path) -> Iterator[tuple[str, Any]]:
    """The values of a file, and of each the words that say where it is.

    Raises ConfigError if the file cannot be read, with the line that is not JSON.
    """
    path = Path(file)
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = _value(text, str(path))
        yield from ((f"{path}, item {place}", row) for place, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _value(line, where)


def read_text(path: Path) -> str:
    """The text of a file, also of a compressed one; raises ConfigError if it cannot be read."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}.") from None


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: it is not JSON: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{where}: it is nested too deeply.") from None
