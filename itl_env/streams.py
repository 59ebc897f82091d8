"""Named random streams with random access, made of integer arithmetic alone.

A stream is a 64-bit key and its values are functions of (key, counter), so any value can be
computed without those before it, in any order and in chunks of any size. Nothing here depends on a
library's generators or distributions: the same seed gives the same values with every version.

    >>> birthdays = key(0, "world", "birth_date")
    >>> uniform_index(birthdays, np.arange(3), 365).tolist()
    [20, 196, 324]
    >>> sorted(permute(np.arange(5), 5, birthdays).tolist())
    [0, 1, 2, 3, 4]
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Item = TypeVar("Item")
_MASK = 2**64 - 1

# A Feistel network of four rounds is already a strong permutation if its round functions are ideal
# (Luby and Rackoff, 1988); two more make up for ours, a mixer and not a cipher, on small domains.
FEISTEL_ROUNDS = 6


def key(seed: int, *names: str | int) -> int:
    """The 64-bit key of the stream `names` under `seed`; different names give unrelated streams."""
    parts = [int(seed), *(name if isinstance(name, str) else int(name) for name in names)]
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest())


def bits(key: int, counters: NDArray[Any]) -> U64:
    """64 uniform bits for each counter: the splitmix64 generator at position `counters`.

    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.)
    `counters` is an array of non-negative integers of any shape but (); the result has its shape.
    """
    x: U64 = np.array(counters, dtype=np.uint64)
    x += 1
    x *= 0x9E3779B97F4A7C15
    x += key
    x ^= x >> 30
    x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= 0x94D049BB133111EB
    x ^= x >> 31
    return x


class Draws:
    """Draws for one item of a stream, one after the other: those of `bits` from its counter on.

    For work that draws a number at a time, where arrays would cost more than they save.

        >>> draws = Draws(key(0, "doc"), 3)
        >>> draws.below(10), draws.between(5, 7), draws.choice("abc")
        (5, 7, 'b')
    """

    def __init__(self, key: int, item: int) -> None:
        """item: from 0 up; it has room for 65,536 draws."""
        self._key = key
        self._counter = item << 16

    def bits(self) -> int:
        """The next 64 uniform bits."""
        self._counter += 1
        x = (self._counter * 0x9E3779B97F4A7C15 + self._key) & _MASK
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        return x ^ (x >> 31)

    def below(self, n: int) -> int:
        """A draw from range(n)."""
        return self.bits() * n >> 64

    def between(self, low: int, high: int) -> int:
        """A draw from low to high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]


def uniform_index(key: int, counters: NDArray[Any], n: int) -> U64:
    """A draw from range(n), n < 2**32, for each counter; probabilities are right to 2**-64."""
    if not 0 < n < 2**32:
        raise ValueError(f"n must be in 1..2**32-1, got {n}")
    # floor(x * n / 2**64) in two halves, since NumPy has no 128-bit product.
    x = bits(key, counters)
    low = ((x & 0xFFFFFFFF) * n) >> 32
    x >>= 32
    x *= n
    x += low
    x >>= 32
    return x


def bernoulli(key: int, counters: NDArray[Any], probability: float) -> NDArray[np.bool_]:
    """True with `probability` (to 53 bits) for each counter; exactly never at 0, always at 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    draws = bits(key, counters) >> 11
    result: NDArray[np.bool_] = draws < int(probability * 2**53)
    return result


def permute(indices: NDArray[Any], n: int, key: int) -> U64:
    """The images of `indices` under a pseudorandom permutation of range(n), for n up to 2**62.

    A Feistel network on pairs of digits in base ceil(sqrt(n)), walked along its cycle until it is
    back in the range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    Only about 2 in sqrt(n) indices need a second step.
    """
    if not 0 <= n <= 2**62:
        raise ValueError(f"n must be in 0..2**62, got {n}")
    x: U64 = np.array(indices, dtype=np.uint64)
    if x.size and int(x.max()) >= n:
        raise ValueError(f"index {int(x.max())} is not in range({n})")
    base = math.isqrt(max(n, 1) - 1) + 1
    flat = x.reshape(-1)
    outside = np.arange(flat.size)
    while outside.size:
        flat[outside] = _feistel(flat[outside], base, key)
        outside = outside[flat[outside] >= n]
    return x


def _feistel(x: U64, base: int, key: int) -> U64:
    left, right = x // base, x % base
    for turn in range(FEISTEL_ROUNDS):
        left += uniform_index(key, right + turn * base, base)
        np.subtract(left, base, out=left, where=left >= base)
        left, right = right, left
    return left * base + right
