"""The fact world: people with unique names and four attributes each, made as a stream from a seed.

    >>> person = next(people(1, seed=0))
    >>> person.name, person.birth_date, person.occupation
    ('Bernice Cunningham', '1/6/1982', 'physiotherapist')

Person i is a pure function of (seed, vocabulary, correlation, i), so a world needs no memory, any
part of it can be made alone, and people(n) is a prefix of people(m) for n < m. The world is that of
arXiv 2508.20755, section 5; `itl_env.entropy` counts the bits that it takes to store one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from itl_env import streams
from itl_env.errors import ConfigError

ATTRIBUTES = ("birth_date", "birth_place", "current_address", "occupation")
# Those that a correlated world shares among people of one last name.
FAMILY_ATTRIBUTES = ATTRIBUTES[1:]
BIRTH_DATES = tuple(
    f"{day}/{month}/{year}"
    for year in range(1950, 2001)
    for month in range(1, 13)
    for day in range(1, 29)
)
VOCABULARIES = ("paper", "large", "ood")

_LISTS = ("first_names", "last_names", "birth_places", "addresses", "occupations")
_CHUNK = 2**16  # people made at once: large enough to hide NumPy's overhead, a few MB of memory


class Fact(NamedTuple):
    """One thing to know: the value of an attribute of the person called `name`."""

    name: str
    attribute: str
    value: str


class Person(NamedTuple):
    """A person of the world; `_asdict()` is the row that databases and exports take."""

    name: str
    birth_date: str
    birth_place: str
    current_address: str
    occupation: str

    def facts(self) -> tuple[Fact, ...]:
        """The person's four facts, in the order of ATTRIBUTES."""
        return tuple(
            Fact(self.name, attribute, value)
            for attribute, value in zip(ATTRIBUTES, self[1:], strict=True)
        )


@dataclass(frozen=True)
class Vocabulary:
    """The word lists of a world. Their order and `name` are part of what defines the world.

    Raises ConfigError if a list is empty, repeats an entry, or holds one that a line of text
    cannot, or if a first name holds a space ("Ann Lee Smith" must have one reading).
    """

    name: str
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    birth_places: tuple[str, ...]
    addresses: tuple[str, ...]
    occupations: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the lists once, here, so that every world can rely on them."""
        for list_name in _LISTS:
            words = getattr(self, list_name)
            problem = None
            if not words:
                problem = "is empty"
            elif len(set(words)) != len(words):
                problem = f"repeats {Counter(words).most_common(1)[0][0]!r}"
            elif bad := [w for w in words if not w or w != w.strip() or not w.isprintable()]:
                problem = f"holds {bad[0]!r}, which is empty, padded or not printable"
            elif list_name == "first_names" and (bad := [w for w in words if " " in w]):
                problem = f"holds {bad[0]!r}, but a first name must not contain a space"
            if problem:
                raise ConfigError(f"the list {list_name} of vocabulary {self.name!r} {problem}.")

    @classmethod
    def load(cls, name: str) -> "Vocabulary":
        """One of the vocabularies that come with the library: "paper", "large" or "ood".

        "paper" has the published cardinalities (437 x 388 names, 7 countries, 213 cities, 100
        occupations), "large" 5,000 x 10,000 names, and "ood" 437 first names found in neither; the
        rest of the lists is shared. Raises ConfigError for another name.
        """
        if name not in VOCABULARIES:
            raise ConfigError(
                f"unknown vocabulary {name!r}: choose one of {', '.join(VOCABULARIES)}."
            )
        return _load(name)

    @classmethod
    def from_folder(cls, folder: str | Path, name: str | None = None) -> "Vocabulary":
        """Your own lists: {first_names,last_names,birth_places,addresses,occupations}.txt.

        One entry per line, UTF-8, lines starting with # ignored. `name` defaults to the folder's.
        Raises ConfigError if a file is missing or a list is not valid.
        """
        folder = Path(folder)
        return cls(name or folder.name, *(_read(folder / f"{words}.txt") for words in _LISTS))

    def limit(self, first: int = 128, last: int = 64) -> "Vocabulary":
        """The same values with only so many names: by default the 8,192 people of the paper's study
        of correlated worlds. Raises ConfigError if the lists are shorter than that.
        """
        if not 1 <= first <= len(self.first_names) or not 1 <= last <= len(self.last_names):
            raise ConfigError(
                f"vocabulary {self.name!r} has {len(self.first_names):,} first and "
                f"{len(self.last_names):,} last names: it cannot be limited to {first:,} and "
                f"{last:,}."
            )
        return Vocabulary(
            f"{self.name}-{first}x{last}",
            self.first_names[:first],
            self.last_names[:last],
            self.birth_places,
            self.addresses,
            self.occupations,
        )

    @property
    def n_names(self) -> int:
        """How many people this vocabulary can name."""
        return len(self.first_names) * len(self.last_names)

    def values(self, attribute: str) -> tuple[str, ...]:
        """All values that `attribute` can take; ConfigError for an attribute that people lack."""
        if attribute not in ATTRIBUTES:
            raise ConfigError(
                f"unknown attribute {attribute!r}: choose one of {', '.join(ATTRIBUTES)}."
            )
        return {
            "birth_date": BIRTH_DATES,
            "birth_place": self.birth_places,
            "current_address": self.addresses,
            "occupation": self.occupations,
        }[attribute]


@cache
def _load(name: str) -> Vocabulary:
    folder = Path(__file__).parent / "vocabulary"
    large = Vocabulary.from_folder(folder, name="large")
    if name == "large":
        return large
    first_names = (
        large.first_names[:437] if name == "paper" else _read(folder / "ood_first_names.txt")
    )
    last_names = large.last_names[:388]
    return Vocabulary(
        name, first_names, last_names, large.birth_places, large.addresses, large.occupations
    )


def _read(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the word list {path}: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def people(
    n: int,
    seed: int = 0,
    vocabulary: str | Vocabulary = "paper",
    correlation: float = 0.0,
    start: int = 0,
) -> Iterator[Person]:
    """People start, ..., start + n - 1 of the world, one after the other, with unique names.

    All attributes are uniform and independent, except that in a world with `correlation` c a birth
    place, address or occupation is, each independently with probability c, the one of the family (a
    uniform draw per last name). Correlation never changes which values are possible.

    Raises ConfigError at the call, not at the first person, if the vocabulary has too few names.
    """
    vocabulary = check_world(n, vocabulary, correlation, start)
    return _people(n, seed, vocabulary, correlation, start)


def facts(
    n: int,
    seed: int = 0,
    vocabulary: str | Vocabulary = "paper",
    correlation: float = 0.0,
    start: int = 0,
) -> Iterator[Fact]:
    """The 4 n facts about `people` of the same arguments, person by person."""
    world = people(n, seed, vocabulary, correlation, start)
    return chain.from_iterable(person.facts() for person in world)


def check_world(
    n: int, vocabulary: str | Vocabulary, correlation: float, start: int = 0
) -> Vocabulary:
    """The vocabulary of the world; ConfigError where `people` of these arguments cannot be."""
    if isinstance(vocabulary, str):
        vocabulary = Vocabulary.load(vocabulary)
    if n < 0 or start < 0:
        raise ConfigError(f"n and start must not be negative, got n={n} and start={start}.")
    if not 0 <= correlation <= 1:
        raise ConfigError(f"correlation must be in [0, 1], got {correlation}.")
    if start + n > vocabulary.n_names:
        raise ConfigError(
            f"{start + n:,} people need as many names, but vocabulary {vocabulary.name!r} has "
            f"{vocabulary.n_names:,}: ask for fewer people or use a larger vocabulary ('large' has "
            f"{Vocabulary.load('large').n_names:,}; Vocabulary.from_folder reads your own lists)."
        )
    return vocabulary


def _people(
    n: int, seed: int, vocabulary: Vocabulary, correlation: float, start: int
) -> Iterator[Person]:
    for chunk in range(start, start + n, _CHUNK):
        index = np.arange(chunk, min(chunk + _CHUNK, start + n), dtype=np.uint64)
        first, last = _names(index, seed, vocabulary)
        names = (
            f"{vocabulary.first_names[i]} {vocabulary.last_names[j]}"
            for i, j in zip(first.tolist(), last.tolist(), strict=True)
        )
        columns = (
            map(
                vocabulary.values(attribute).__getitem__,
                _value_indices(attribute, index, last, seed, vocabulary, correlation).tolist(),
            )
            for attribute in ATTRIBUTES
        )
        yield from map(Person._make, zip(names, *columns, strict=True))


def _names(
    index: streams.U64, seed: int, vocabulary: Vocabulary
) -> tuple[streams.U64, streams.U64]:
    """Positions of the first and last names of people `index`; no pair repeats."""
    key = streams.key(seed, "world", vocabulary.name, "name")
    pair = streams.permute(index, vocabulary.n_names, key)
    n_last = len(vocabulary.last_names)
    return pair // n_last, pair % n_last


def family_sizes(n: int, seed: int, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """How many of the first n people have each last name; shape (len(vocabulary.last_names),)."""
    sizes = np.zeros(len(vocabulary.last_names), dtype=np.int64)
    for chunk in range(0, n, _CHUNK):
        index = np.arange(chunk, min(chunk + _CHUNK, n), dtype=np.uint64)
        _, last = _names(index, seed, vocabulary)
        sizes += np.bincount(last.astype(np.int64), minlength=sizes.size)
    return sizes


def _value_indices(
    attribute: str,
    index: streams.U64,
    last: streams.U64,
    seed: int,
    vocabulary: Vocabulary,
    correlation: float,
) -> streams.U64:
    """Positions in the attribute's list of the values of people `index` with last names `last`."""
    n_values = len(vocabulary.values(attribute))

    def key(purpose: str) -> int:
        return streams.key(seed, "world", vocabulary.name, attribute, purpose)

    own = streams.uniform_index(key("own"), index, n_values)
    if attribute not in FAMILY_ATTRIBUTES:
        return own
    family = streams.uniform_index(key("family"), last, n_values)
    return np.where(streams.bernoulli(key("inherits"), index, correlation), family, own)
