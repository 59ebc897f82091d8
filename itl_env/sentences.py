"""Sentences of text files and of the hub that have a number in them, but nothing to calculate."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from itl_env.errors import ConfigError, ITLError
from itl_env.json_rows import read_json_rows, read_text
from itl_env.text import unstorable

FIELDS = ("question", "ctx", "text", "query")
"""Of a row of JSON, the fields that may hold its text; the first that does is taken."""

C4 = ("allenai/c4", "en")
SHORTEST, LONGEST = 30, 150  # characters of a sentence

_END = re.compile(r"(?<=[.!?])\s+")
# Signs of a calculation; the minus sign (U+2212) is another character than the hyphen.
_OPERATORS = re.compile("[-+*/×÷\u2212]")


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of texts that can be copied, each of them once.

    They end at . ! or ? before a space; spaces and line breaks become single spaces. A sentence has
    a digit, 30 to 150 characters, no sign of an operator (nor a hyphen, which is one) and no tag of
    a call.
    """
    seen = set()
    for text in texts:
        for sentence in _END.split(text):
            sentence = " ".join(sentence.split())
            if sentence not in seen and is_fit(sentence):
                seen.add(sentence)
                yield sentence


def is_fit(sentence: str) -> bool:
    """Whether a sentence can be copied; see `sentences`."""
    return (
        SHORTEST <= len(sentence) <= LONGEST
        and re.search(r"[0-9]", sentence) is not None
        and _OPERATORS.search(sentence) is None
        and "<tool_call>" not in sentence
        and unstorable(sentence) is None
    )


def read_texts(files: Sequence[str | Path]) -> Iterator[str]:
    """The texts of files, one after the other.

    Of JSON (.json, .jsonl) it is what a row has in one of `FIELDS`; of any other file it is what
    lies between empty lines. Both may be compressed (.gz).

    Raises ConfigError that names the file, and the line where that helps.
    """
    for file in map(Path, files):
        kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
        if kind in (".json", ".jsonl"):
            yield from (_text_of(row, where) for where, row in read_json_rows(file))
        else:
            yield from re.split(r"\n\s*\n", read_text(file))


def hub_texts() -> Iterator[str]:
    """The texts of C4 from the hub, as they are streamed.

    Raises ITLError if they cannot be had, which names the flag that takes files instead.
    """
    import datasets

    repository, config = C4
    datasets.disable_progress_bars()
    try:
        for row in datasets.load_dataset(repository, config, split="train", streaming=True):
            yield row["text"]
    except Exception as error:  # it raises what its readers raise
        said = str(error).strip() or repr(error)
        raise ITLError(
            f"{repository} cannot be had from the hub: {said.splitlines()[0].rstrip('.')}; files "
            "of text serve as well (--text FILE)."
        ) from error


def collect(
    texts: Iterable[str], most: int, on_found: Callable[[int], None] = lambda n: None
) -> list[str]:
    """The first sentences of texts that can be copied, `most` at most.

    on_found: told now and then how many there are.
    """
    found: list[str] = []
    for sentence in sentences(texts):
        found.append(sentence)
        if len(found) % 100 == 0:
            on_found(len(found))
        if len(found) == most:
            break
    return found


def _text_of(row: object, where: str) -> str:
    if isinstance(row, dict):
        for name in FIELDS:
            if isinstance(text := row.get(name), str):
                return text
    raise ConfigError(f"{where}: there is no text in any of the fields {', '.join(FIELDS)}.")
