"""What a circuit says, as numbers: the programs of all attributes, and their letters.

A program is what to say about one attribute in one turn: in the call, or in the answer, around the
name and the value that are copied.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from itl_env.dialogue import Phrasing, Style, call_text, lookup_query
from itl_env.errors import ConfigError

# Numbers of tokens, which are not their ids: bytes are their own, and marks lie around them. That
# of an assistant's turn is the largest, so that a head finds it; likewise the end of a call is the
# smallest, and the mark that opens the dialogue, which stands in for a call that is not there, the
# smallest but for it.
CALL_ENDS, OPENS, DIALOGUE_ENDS, TURN_BEGINS = -2, -1, 256, 257


@dataclass(frozen=True)
class Program:
    """What is said in one turn about one attribute; its letters are numbers of tokens.

    vowel: whether the value must begin with a vowel; None if that is all the same.
    """

    attribute: str
    answers: bool
    lead: bytes
    named: bool
    middle: Sequence[int]
    tail: Sequence[int] = ()
    vowel: bool | None = None


class Scripts:
    """All programs, and where in a script each of their letters stands.

    Letters of a program are numbered from 1 without name and value. Calls jump over numbers behind
    the attribute, so that " FOR " stands at the same numbers in "FIND pet FOR " and "FIND mother
    FOR ", and takes one set of units. The square of a number is looked up at that place of the
    dialogue; so calls do not jump where one attribute's name is so much longer than the question
    for another that the dialogue may still be shorter.

    widest: letters before the name in a call, at most. ending: how many of them, from the last, are
    the same in all calls. jumps: whether calls jump. articles: whether an article hangs on a value.
    """

    def __init__(self, phrasing: Mapping[str, Phrasing], style: Style) -> None:
        every = [each for name, words in phrasing.items() for each in _programs(name, words, style)]
        self.programs = sorted(every, key=lambda each: each.answers)  # calls side by side
        leads = [each.lead for each in every if not each.answers]
        self.widest = max(map(len, leads))
        backwards = zip(*(lead[::-1] for lead in leads), strict=False)
        self.ending = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, backwards))
        shortest = {name: len(in_bytes(words.ask(""))) + 1 for name, words in phrasing.items()}
        self.jumps = all(
            self.widest - len(each.lead) <= shortest[each.attribute]
            for each in every
            if not each.answers
        )
        self.articles = any(each.vowel for each in every)

    def numbered(self, attribute: str) -> list[tuple[int, Program]]:
        """The programs of an attribute, with their numbers."""
        return [pair for pair in enumerate(self.programs, 1) if pair[1].attribute == attribute]

    def letters(self) -> list[dict[int, int]]:
        """For each number in a script, from 1, the token that programs have there."""
        found: dict[int, dict[int, int]] = {}
        for number, each in enumerate(self.programs, 1):
            jump = self.widest - len(each.lead) if self.jumps and not each.answers else 0
            for n, letter in enumerate([*each.lead, *each.middle, *each.tail], 1):
                behind = n > len(each.lead) - self.ending
                found.setdefault(n + jump * behind, {})[number] = letter
        return [found.get(n, {}) for n in range(1, max(found) + 1)]


def _programs(attribute: str, phrasing: Phrasing, style: Style) -> Iterator[Program]:
    """The call and the answer; two answers where an article depends on the value."""
    head, named, between, tail, article = phrasing.pieces
    query = lookup_query(attribute, "")
    before, query, after = call_text(query, style).partition(query)
    yield Program(attribute, False, in_bytes(before + query), True, [*in_bytes(after), CALL_ENDS])
    articles: Mapping[str, bool | None] = {"an ": True, "a ": False} if article else {"": None}
    for word, begins in articles.items():
        yield Program(
            attribute, True, in_bytes(head), named, in_bytes(between + word),
            [*in_bytes(tail), DIALOGUE_ENDS], begins,
        )  # fmt: skip


def in_bytes(text: str) -> bytes:
    """UTF-8; raises ConfigError for a lone surrogate, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"The phrasing {text!r} holds a lone surrogate.") from None
