"""Text and identifiers as SQL databases take them."""

from collections.abc import Iterator
from typing import Any


def unstorable(text: str) -> str | None:
    """What `text` holds that not every database can store, in words; None if all can."""
    if "\0" in text:
        return "a NUL character"
    if not text.isascii():  # quick to ask, and most text is
        try:
            text.encode()
        except UnicodeEncodeError:
            return "a lone surrogate"
    return None


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names too, however deeply it is nested."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value


def quote(identifier: str) -> str:
    """An SQL identifier in the standard's quotes."""
    return '"' + identifier.replace('"', '""') + '"'
