"""Text and identifiers as SQL databases take them."""


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


def quote(identifier: str) -> str:
    """An SQL identifier in the standard's quotes."""
    return '"' + identifier.replace('"', '""') + '"'
