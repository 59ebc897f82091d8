"""The fact world: people with unique names and four attributes each, made as a stream from a seed.

    >>> person = next(people(1, seed=0))
    >>> person.name, person.birth_date, person.occupation
    ('Bernice Cunningham', '1/6/1982', 'physiotherapist')

Person i is a pure function of (seed, vocabulary, correlation, i), so a world needs no memory, any
part of it can be made alone, and people(n) is a prefix of people(m) for n < m. The world is that of
arXiv 2508.20755, section 5; `world_entropy` gives the bits that it takes to store one.
"""

import math
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
FAMILY_ATTRIBUTES = ATTRIBUTES[
    1:
]  # those that a correlated world shares among people of one last name
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
    vocabulary = _check(n, vocabulary, correlation, start)
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


def _check(n: int, vocabulary: str | Vocabulary, correlation: float, start: int = 0) -> Vocabulary:
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


@dataclass(frozen=True)
class WorldEntropy:
    """What a world of `n_people` takes to store: `bits` per person for each attribute."""

    n_people: int
    bits: dict[str, float]

    @property
    def bits_per_person(self) -> float:
        """The sum over attributes."""
        return sum(self.bits.values())

    @property
    def bits_per_fact(self) -> float:
        """The mean over attributes: 7.81 in the uncorrelated world of the paper."""
        return self.bits_per_person / len(self.bits)

    @property
    def total_bits(self) -> float:
        """The whole world."""
        return self.bits_per_person * self.n_people


def world_entropy(
    n_people: int,
    vocabulary: str | Vocabulary = "paper",
    correlation: float = 0.0,
    seed: int = 0,
) -> WorldEntropy:
    """The joint entropy of all values of the first `n_people`, given their names.

    An uncorrelated attribute a has log2 |V_a| bits per person. With correlation c, the m members of
    a family share a hidden uniform value Z and are independent given it, so with V = |V_a| their
    values v have the joint entropy

        H_m = m h + I(Z; v),    h = H(v_i | Z) = entropy of (c + (1-c)/V, (1-c)/V, ..., (1-c)/V)

    and an attribute has sum_f H_{m_f} / n_people bits per person, over the families f of the world,
    with their sizes m_f under `seed`. I(Z; v), at most log2 V, pays for the family's own value.
    H_m is exact to about 1e-6 bits, with one exception: where c is so small that 128 members do not
    yet determine Z, larger families get an upper bound (H_m is concave in m).

    Raises ConfigError as `people` does, and for a world without people.
    """
    vocabulary = _check(n_people, vocabulary, correlation)
    if n_people == 0:
        raise ConfigError("the entropy per person of a world without people is not defined.")
    sizes = np.zeros(len(vocabulary.last_names), dtype=np.int64)
    if correlation:
        for chunk in range(0, n_people, _CHUNK):
            index = np.arange(chunk, min(chunk + _CHUNK, n_people), dtype=np.uint64)
            _, last = _names(index, seed, vocabulary)
            sizes += np.bincount(last.astype(np.int64), minlength=sizes.size)
    bits = {}
    for attribute in ATTRIBUTES:
        n_values = len(vocabulary.values(attribute))
        if correlation and attribute in FAMILY_ATTRIBUTES:
            table = family_entropy(int(sizes.max()), n_values, correlation)
            bits[attribute] = float(table[sizes].sum()) / n_people
        else:
            bits[attribute] = math.log2(n_values)
    return WorldEntropy(n_people, bits)


def family_entropy(largest: int, n_values: int, correlation: float) -> NDArray[np.float64]:
    """H_m in bits for m = 0..largest, as `world_entropy` defines it; shape (largest + 1,).

    With p = c + (1-c)/V, q = (1-c)/V, r = p/q, counts n_z of the values in the family and Z = 0
    without loss of generality,

        I(Z; v) = log2 V - E log2 sum_z r^(n_z - n_0)
                = log2 V + m p log2 r - E log2 S,   S = sum_z r^n_z

    where n is multinomial (p, q, ..., q). The expectation comes from the Laplace transform of S,
    which is a coefficient of a product of V power series, one per value:

        E ln S = integral over u of exp(-t) - E exp(-t S),   t = e^u
        E exp(-t S) = m! [x^m] A_p(x) A_q(x)^(V-1),   A_w(x) = sum_k (w x)^k / k! exp(-t r^k)
    """
    members = np.arange(largest + 1, dtype=np.float64)
    V, c = n_values, correlation
    ceiling = np.where(members > 0, math.log2(V), 0.0)  # of I(Z; v)
    if V == 1 or c == 1:
        return ceiling
    if c == 0:
        return members * math.log2(V)
    q = (1 - c) / V
    p = c + q
    h = -p * math.log2(p) - (V - 1) * q * math.log2(q)
    log_r = math.log(p / q)

    # H(Z | v) = log2 V - I is at most (V-1) / ln 2 * overlap^m (Bhattacharyya), so few members are
    # enough to be sure of Z, and beyond them H_m = m h + log2 V.
    overlap = 1 - (math.sqrt(p) - math.sqrt(q)) ** 2
    sure = math.log(1e-6 * math.log(2) / (V - 1)) / math.log(overlap) if overlap < 1 else math.inf
    exact = min(largest, max(1, math.ceil(min(sure, 128))))

    # The trapezoid rule on this integrand converges like exp(-pi^2 / step). The power series are
    # scaled by exact^k, which keeps their coefficients within floating-point range.
    step = 0.5
    u = np.arange(-(exact * log_r + math.log(V)) - 35, 4, step)[:, None]
    k = np.arange(exact + 1)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    decay = np.exp(-np.exp(np.minimum(u + k * log_r, 10)))
    series_p, series_q = (np.exp(k * math.log(w * exact) - log_factorial) * decay for w in (p, q))
    product = _multiply(series_p, _power(series_q, V - 1))
    transform = product * np.exp(log_factorial - k * math.log(exact))
    log_s = step * (np.exp(-np.exp(u)) - transform).sum(axis=0)
    information = math.log2(V) + (k * p * log_r - log_s) / math.log(2)

    entropy = members * h + ceiling
    entropy[: exact + 1] = k * h + np.clip(information, 0, ceiling[: exact + 1])
    slope = entropy[exact] - entropy[exact - 1]
    beyond = entropy[exact] + (members - exact) * slope
    entropy[exact + 1 :] = np.minimum(entropy, beyond)[exact + 1 :]
    return entropy


def _multiply(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of power series to the same order, one per row: (rows, order + 1) each."""
    product = np.zeros_like(a)
    for k in range(a.shape[1]):
        product[:, k:] += a[:, k : k + 1] * b[:, : a.shape[1] - k]
    return product


def _power(a: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """The `exponent`-th power, at least the first, of each row's power series."""
    if exponent == 1:
        return a
    half = _power(_multiply(a, a), exponent // 2)
    return _multiply(half, a) if exponent % 2 else half
