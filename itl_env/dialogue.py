"""What is said in a fact dialogue: messages, the phrasing of each attribute, and call styles.

A dialogue about one fact is a list of messages::

    user       When was Ann Lee born?
    assistant  FIND birth_date FOR Ann Lee
    database   7/3/1984
    assistant  Ann Lee was born on 7/3/1984.

Without the tool the two middle messages are absent. Questions and statements of the four
attributes of the fact world follow the wording published with arXiv 2508.20755, section 5;
any other attribute gets a neutral wording.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from itl_env.errors import ConfigError
from itl_env.text import quote

Role = Literal["user", "assistant", "database"]
Style = Literal["compact", "fenced"]
Dialect = Literal["lookup", "sql"]

STYLES: tuple[Style, ...] = ("compact", "fenced")
DIALECTS: tuple[Dialect, ...] = ("lookup", "sql")

FENCED_LEAD = "To answer this question, I will send a request to the database:\n"
NO_RESULT = "no result"
"""The database's ordinary reply to a query that matches nothing."""
VOWELS = "aeiou"
"""First letters, of either case, that take the article "an"."""
ERROR_PREFIX = "error: "
"""What the reply to an action that could not be carried out begins with."""


class Message(NamedTuple):
    """One turn of a dialogue."""

    role: Role
    content: str


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun, by its first letter: "an actor", "a baker"."""
    return f"{'an' if noun[:1].lower() in VOWELS and noun else 'a'} {noun}"


def _split(template: str, fields: tuple[str, ...]) -> list[str]:
    """Cut a template at its placeholders: one literal piece before each of them and one after."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"The phrasing {template!r} is not a template: {error}.") from None
    pieces, names = [""], []
    for literal, placeholder, _, _ in parsed:
        pieces[-1] += literal
        if placeholder is not None:
            names.append(placeholder)
            pieces.append("")
    if tuple(name.removeprefix("a_") for name in names) != fields:
        wanted = " then ".join(f"{{{field}}}" for field in fields)
        raise ConfigError(f"The phrasing {template!r} must hold {wanted}, once each.")
    return pieces


class Statement(NamedTuple):
    """The pieces of a statement: head, name if `named`, middle, article if any, value, tail."""

    head: str
    named: bool
    middle: str
    tail: str
    article: bool


@dataclass(frozen=True)
class Phrasing:
    """How one attribute is asked for and stated.

    question: a template with `{name}`.
    statement: a template with `{name}`, or without it, followed by `{value}`, or by `{a_value}`
        where the value takes an indefinite article.

    Raises ConfigError for a template with other placeholders.
    """

    question: str
    statement: str
    around_name: tuple[str, str] = field(init=False, repr=False, compare=False)
    """What the question says before the name, and after it."""
    pieces: Statement = field(init=False, repr=False, compare=False)
    """The statement, cut at its placeholders."""

    def __post_init__(self) -> None:
        before, after = _split(self.question, ("name",))
        named = "{name}" in self.statement
        *head, middle, tail = _split(self.statement, ("name", "value") if named else ("value",))
        article = "{a_value}" in self.statement
        pieces = Statement("".join(head), named, middle, tail, article)
        object.__setattr__(self, "around_name", (before, after))
        object.__setattr__(self, "pieces", pieces)

    def ask(self, name: str) -> str:
        """The question about `name`."""
        before, after = self.around_name
        return before + name + after

    def name_in(self, question: str) -> str | None:
        """The name this phrasing would have been asked about, or None if it does not fit."""
        before, after = self.around_name
        if not (question.startswith(before) and question.endswith(after)):
            return None
        return question[len(before) : len(question) - len(after)] or None

    def state(self, name: str, value: str) -> str:
        """The statement that `name` has `value`."""
        head, named, middle, tail, article = self.pieces
        said = with_article(value) if article else value
        return head + (name if named else "") + middle + said + tail

    def value_in(self, text: str, name: str) -> str:
        """The value that `text` states about `name`; `text` itself if it is no such statement.

        A statement about somebody else is no statement about `name`. Either article is accepted,
        and the final full stop may be missing.
        """
        head, named, middle, tail, article = self.pieces
        start = head + (name if named else "") + middle
        openings = (start + "an ", start + "a ") if article else (start,)
        for ending in (tail, tail.removesuffix(".")):
            for opening in openings:
                if text.startswith(opening) and text.endswith(ending):
                    value = text[len(opening) : len(text) - len(ending)]
                    if value:
                        return value
        return text


PHRASINGS: dict[str, Phrasing] = {
    "birth_date": Phrasing("When was {name} born?", "{name} was born on {value}."),
    "birth_place": Phrasing("Where was {name} born?", "{name} was born in {value}."),
    "current_address": Phrasing("Where does {name} live?", "{name} lives at {value}."),
    "occupation": Phrasing("What is {name}'s occupation?", "{name} works as {a_value}."),
}


@lru_cache(maxsize=4096)
def _neutral(attribute: str) -> Phrasing:
    # Braces in a column name are text, not placeholders.
    label = attribute.replace("_", " ").replace("{", "{{").replace("}", "}}")
    return Phrasing(f"What is the {label} of {{name}}?", f"The {label} of {{name}} is {{value}}.")


def phrasing(attribute: str) -> Phrasing:
    """The phrasing of an attribute: the fact world's own, else a neutral one."""
    return PHRASINGS.get(attribute) or _neutral(attribute)


def phrasings(
    attributes: tuple[str, ...], own: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Phrasing]:
    """The phrasing of each attribute.

    own: for any of the attributes, `{"question": ..., "statement": ...}` instead of the default.

    Raises ConfigError for an attribute in `own` that is not among `attributes`, for templates
    without the right placeholders, and for two attributes that ask the same question.
    """
    own = own or {}
    if unknown := sorted(set(own) - set(attributes)):
        raise ConfigError(
            f"There is no attribute {unknown[0]!r} to phrase; choose among {', '.join(attributes)}."
        )
    chosen: dict[str, Phrasing] = {}
    for attribute in attributes:
        given = own.get(attribute)
        if given is None:
            chosen[attribute] = phrasing(attribute)
        elif set(given) == {"question", "statement"}:
            chosen[attribute] = Phrasing(given["question"], given["statement"])
        else:
            raise ConfigError(
                f"The phrasing of {attribute!r} needs a question and a statement, nothing else."
            )
    asked: dict[str, str] = {}
    for attribute, words in chosen.items():
        if other := asked.get(words.question):
            raise ConfigError(f"Attributes {other!r} and {attribute!r} ask the same question.")
        asked[words.question] = attribute
    return chosen


def statement(attribute: str, name: str, value: str) -> str:
    """The statement that an attribute of `name` has `value`."""
    return phrasing(attribute).state(name, value)


def lookup_query(attribute: str, name: str) -> str:
    """The query of the `lookup` dialect."""
    return f"FIND {attribute} FOR {name}"


def sql_query(attribute: str, name: str, table: str, key: str) -> str:
    """The query of the `sql` dialect; identifiers are quoted only where SQL demands it."""
    literal = name.replace("'", "''")
    column, source, where = (_identifier(word) for word in (attribute, table, key))
    return f"SELECT {column} FROM {source} WHERE {where} = '{literal}'"


# A keyword used as a column name must be quoted too; plain words outside this list need not be.
_SQL_KEYWORDS = frozenset(
    "all and as between by case check collate create cross current_date current_time "  # noqa: SIM905
    "current_timestamp default delete desc distinct drop else end escape except exists for from "
    "full glob group having in index inner insert intersect into is isnull join key left like "
    "limit match natural not notnull null offset on or order outer primary references right "
    "select set table then to transaction union unique update using values when where with".split()
)


def _identifier(word: str) -> str:
    plain = word.isascii() and word.isidentifier() and word.lower() not in _SQL_KEYWORDS
    return word if plain else quote(word)


def call_text(query: str, style: Style) -> str:
    """The assistant's turn that sends `query`: the bare line, or an announced fenced block."""
    return query if style == "compact" else f"{FENCED_LEAD}```sql\n{query}\n```\n"
