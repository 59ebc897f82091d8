"""From the text of a model's turn to an action; nothing here raises on what a model wrote.

A turn of raw text is a query if it holds a fenced block or begins like a call, else an answer.
Agents that know which they mean (NanoLlama ends a call with its `<|database|>` mark) build the
action themselves and leave only the query's own syntax to `parse_lookup`.
"""

from typing import NamedTuple

from itl_env.dialogue import Dialect
from itl_env.text import unstorable

_FENCE = "```"


class Query(NamedTuple):
    """A request to the database in the task's dialect; `text` is the query without its fence."""

    text: str


class Answer(NamedTuple):
    """The final answer: the bare value or the full statement."""

    text: str


class ParseError(NamedTuple):
    """A turn that is no action; `code` is stable, `message` is for the model to read."""

    code: str
    message: str


Action = Query | Answer | ParseError


class Lookup(NamedTuple):
    """A parsed query of the `lookup` dialect."""

    attribute: str
    name: str


def invalid_text(text: str) -> ParseError | None:
    """Refuse what no database can store: NUL characters and lone surrogates."""
    problem = unstorable(text)
    return ParseError("invalid_text", f"the text holds {problem}") if problem else None


def parse_turn(text: str, dialect: Dialect, max_length: int) -> Action:
    """Read one turn of raw text.

    text: anything a model may write.
    max_length: characters; a longer turn is an error (`too_long`).
    """
    if len(text) > max_length:
        return ParseError("too_long", f"the turn is longer than {max_length} characters")
    if error := invalid_text(text):
        return error
    fenced = text.split(_FENCE)
    if len(fenced) > 1:
        return _fenced_query(fenced)
    words = _trim(text)
    if not words:
        return ParseError("empty", "the turn is empty")
    first = words.split(maxsplit=1)[0]
    if first == "FIND" if dialect == "lookup" else first.upper() in ("SELECT", "WITH"):
        return Query(words)
    return Answer(words.rstrip())


def _fenced_query(pieces: list[str]) -> Action:
    """The one query of a turn cut at its fences: lead, block, rest."""
    if len(pieces) != 3:
        return ParseError("malformed", "write one fenced block, opened and closed")
    language, newline, body = pieces[1].partition("\n")
    if not newline or language.strip().lower() not in ("", "sql"):
        return ParseError("malformed", "the fenced block must be of type sql")
    if not body.strip():
        return ParseError("malformed", "the fenced block is empty")
    if pieces[2].strip():
        return ParseError("malformed", "nothing may follow the fenced block")
    return Query(_trim(body))


def _trim(text: str) -> str:
    """Without what models put around a line; spaces at its end may belong to a name."""
    return text.lstrip().rstrip("\r\n")


def parse_lookup(text: str) -> Lookup | ParseError:
    """Read `FIND <attribute> FOR <name>`; the attribute ends at the first ` FOR `."""
    line = _trim(text)
    verb, _, rest = line.partition(" ")
    attribute, found, name = rest.partition(" FOR ")
    if verb != "FIND" or not found or not attribute or not name or "\n" in line:
        return ParseError("malformed", "write FIND <attribute> FOR <name>")
    return Lookup(attribute, name)
