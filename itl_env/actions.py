"""From the text of a model's turn to an action; nothing here raises on what a model wrote.

In fact recall a turn of raw text is a query if it holds a fenced block or begins like a call, else
an answer. Agents that know which they mean (NanoLlama ends a call with its `<|database|>` mark)
build the action themselves and leave only the query's own syntax to `parse_lookup`.

In tool calling a turn is one JSON object: `{"final": "text"}`, or `{"tool": ..., "args": {...}}`.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from itl_env.dialogue import Dialect
from itl_env.text import texts_in, unstorable

_FENCE = "```"


class Query(NamedTuple):
    """A request to the database in the task's dialect; `text` is the query without its fence."""

    text: str


class Answer(NamedTuple):
    """The final answer: the bare value or the full statement."""

    text: str


class ToolCall(NamedTuple):
    """A call of a tool, which may not exist or take other arguments."""

    tool: str
    args: Mapping[str, Any]


class Final(NamedTuple):
    """The direct answer of a turn in JSON."""

    text: str


class ParseError(NamedTuple):
    """A turn that is no action; `code` is stable, `message` is for the model to read."""

    code: str
    message: str


Action = Query | Answer | ParseError
JsonAction = ToolCall | Final | ParseError


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


# -- turns in JSON ---------------------------------------------------------------------------------

_FORMS = 'write {"final": "text"} or {"tool": "name", "args": {...}}'


def parse_json_turn(text: str, max_length: int) -> JsonAction:
    """Read one turn of tool calling: the JSON object from the first `{` to the last `}`.

    text: anything a model may write.
    max_length: characters; a longer turn is an error.

    Codes: too_long, invalid_text, no_json (no braces), invalid_json (with a name given twice, too,
    and numbers that JSON does not know), wrong_form (neither form, or both).
    """
    if len(text) > max_length:
        return ParseError("too_long", f"the turn is longer than {max_length} characters")
    if error := invalid_text(text):
        return error
    start, end = _json_span(text)
    if start < 0:
        return ParseError("no_json", f"there is no JSON object; {_FORMS}")
    try:
        given = _TURNS.decode(text[start:end])
    except (ValueError, RecursionError) as failure:
        why = failure.msg if isinstance(failure, json.JSONDecodeError) else str(failure)
        return ParseError("invalid_json", f"the JSON is not valid: {why}")
    if set(given) == {"final"} and isinstance(given["final"], str):
        action: JsonAction = Final(given["final"])
    elif set(given) == {"tool", "args"} and isinstance(given["tool"], str):
        if not isinstance(given["args"], dict):
            return ParseError("wrong_form", f"args must be an object; {_FORMS}")
        action = ToolCall(given["tool"], given["args"])
    else:
        return ParseError("wrong_form", f"the JSON has neither form; {_FORMS}")
    # Escapes may spell what plain text may not hold.
    return next((error for each in texts_in(given) if (error := invalid_text(each))), action)


def is_bare(text: str) -> bool:
    """Whether a turn is a JSON object and nothing around it but space."""
    start, end = _json_span(text)
    return start >= 0 and not text[:start].strip() and not text[end:].strip()


def final_turn(text: str) -> str:
    """The turn that answers `text`."""
    return json.dumps({"final": text}, ensure_ascii=False)


def call_turn(tool: str, args: Mapping[str, Any]) -> str:
    """The turn that calls a tool."""
    return json.dumps({"tool": tool, "args": dict(args)}, ensure_ascii=False)


def _json_span(text: str) -> tuple[int, int]:
    """From the first `{` to behind the last `}`; (-1, -1) if there is no such stretch."""
    start, end = text.find("{"), text.rfind("}") + 1
    return (start, end) if 0 <= start < end else (-1, -1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ValueError("a name is given twice")
    return given


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_TURNS = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
