"""Which letters of a question tell what it asks for.

The attributes of a database are asked for by fixed phrasings around a name that may be any text.
Most pairs of phrasings differ at a letter that is fixed in both, counted from the question's start
or from its end: a few such letters tell all of these apart. Where two phrasings differ nowhere
("What is {name}'s occupation?" and "What is the age of {name}?"), some names make questions that
both fit; there all the letters that either has alone are read, and the phrasing with the longer
fixed text is meant, as `itl_agents.scripted.read_question` has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from itl_env.dialogue import Phrasing
from itl_env.errors import ConfigError

MOST_ALIKE = 5
"""Attributes that one question may fit."""


class Letter(NamedTuple):
    """A place in a question: the n-th byte from its start, or from its end; n counts from 1."""

    side: str
    n: int


class Reading(NamedTuple):
    """Attributes whose phrasings one question can fit at once; a single one, most often.

    letters: what these questions have in common, of the letters that are read.
    attribute: of these, the one that any other takes precedence over. It is asked for by a question
        that fits no other, so what it does must be done once for the reading of it alone and undone
        for that of a pair; for three, done again: the rule of inclusion and exclusion. This is
        `sign`.
    """

    letters: Mapping[Letter, int]
    attribute: str
    sign: int


def readings(phrasings: Mapping[str, Phrasing]) -> list[Reading]:
    """How questions of these phrasings are told apart, but for those that are `unreadable`.

    Raises ConfigError if too many attributes can be meant by the same questions.
    """
    fixed = {name: _fixed_letters(words) for name, words in phrasings.items()}

    def precedence(name: str) -> tuple[int, str]:
        """Of phrasings that fit, the first in this order is meant."""
        return -sum(map(len, phrasings[name].around_name)), name

    alike = {
        frozenset(pair)
        for pair in combinations(phrasings, 2)
        if not _differences(*(fixed[name] for name in pair))
    }
    read = _letters_read(fixed, alike)
    found = []
    for group in _cliques(list(phrasings), alike):
        letters = {each: c for name in group for each, c in fixed[name].items() if each in read}
        found.append(Reading(letters, max(group, key=precedence), 1 if len(group) % 2 else -1))
    return found


def _fixed_letters(phrasing: Phrasing) -> dict[Letter, int]:
    before, after = (part.encode() for part in phrasing.around_name)
    start = {Letter("start", n): byte for n, byte in enumerate(before, 1)}
    return start | {Letter("end", n): byte for n, byte in enumerate(after[::-1], 1)}


def _differences(one: Mapping[Letter, int], other: Mapping[Letter, int]) -> set[Letter]:
    """Letters that are fixed in both, and not the same."""
    return {letter for letter in one.keys() & other.keys() if one[letter] != other[letter]}


def _letters_read(
    fixed: Mapping[str, Mapping[Letter, int]], alike: set[frozenset[str]]
) -> set[Letter]:
    """Few letters that tell every pair of attributes apart as well as that can be done."""
    # Of those that differ nowhere, all that is fixed in one of them only.
    read = {
        letter
        for one, other in map(tuple, alike)
        for letter in fixed[one].keys() ^ fixed[other].keys()
    }
    left = [
        differences
        for one, other in combinations(fixed, 2)
        if (differences := _differences(fixed[one], fixed[other])) and not differences & read
    ]
    while left:
        counts: dict[Letter, int] = {}
        for letter in sorted(letter for differences in left for letter in differences):
            counts[letter] = counts.get(letter, 0) + 1
        best = max(counts, key=lambda letter: counts[letter])
        read.add(best)
        left = [differences for differences in left if best not in differences]
    return read


def _cliques(names: Sequence[str], alike: set[frozenset[str]]) -> Iterator[tuple[str, ...]]:
    """Every set of names that are alike pair by pair; single names are such sets."""
    waiting: list[tuple[str, ...]] = [(name,) for name in names]
    while waiting:
        group = waiting.pop()
        if len(group) > MOST_ALIKE:
            raise ConfigError(
                f"A question can be read in too many ways: by {', '.join(group)}; give phrasings "
                "of their own that differ in a fixed word."
            )
        yield group
        waiting += [
            (*group, name)
            for name in names[names.index(group[-1]) + 1 :]
            if all(frozenset((name, other)) in alike for other in group)
        ]


def unreadable(phrasings: Mapping[str, Phrasing]) -> set[str]:
    """Questions for one attribute that look like another's without a name.

    These few are read wrongly: "What is the date of birth of ?" asks for the date of "birth of ",
    but for no date of birth.
    """
    found = set()
    for words in phrasings.values():
        before, after = words.around_name
        for n in range(min(len(before), len(after)) + 1):
            question = before + after[n:]
            asks = any(other.name_in(question) is not None for other in phrasings.values())
            if before.endswith(after[:n]) and asks:
                found.add(question)
    return found
