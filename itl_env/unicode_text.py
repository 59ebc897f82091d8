"""A Gymnasium space of any text, and how vector environments share it between processes.

Gymnasium's own `Text` knows a fixed set of characters, and its default `AsyncVectorEnv` gives the
observations of every `Text` space as they were before the first reset. Importing this module makes
both right for `UnicodeText`: each text is a length and UTF-32 code points in shared memory.
"""

import string
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from gymnasium.spaces import Text
from gymnasium.vector.utils import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import SynchronizedArray

    SharedArray: TypeAlias = SynchronizedArray[Any]

# What samples are made of: more than ASCII, so that code that is tried on samples meets it.
_SAMPLED = frozenset(string.ascii_letters + string.digits + string.punctuation + " " + "éßЖ東😀")


class UnicodeText(Text):
    """Any string of 0 to `max_length` characters; samples are printable.

    >>> "naïve 😀" in UnicodeText(10), "too long for it" in UnicodeText(10)
    (True, False)
    """

    def __init__(self, max_length: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=_SAMPLED, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __deepcopy__(self, memo: dict[int, Any]) -> "UnicodeText":
        # Vector environments copy a space per lane; the tables of characters never change.
        copy = self.__class__.__new__(self.__class__)
        copy.__dict__.update(self.__dict__)
        copy._np_random = deepcopy(self._np_random, memo)
        return copy


class _SharedTexts(Sequence[str]):
    """The texts of all lanes as they are now; Gymnasium reads them by making a deep copy."""

    def __init__(self, memory: "SharedArray", n: int, max_length: int) -> None:
        self._rows = _rows(memory, max_length)[:n]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        row = self._rows[index]
        return row[1 : 1 + row[0]].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


def _rows(memory: "SharedArray", max_length: int) -> np.ndarray:
    """The memory as (lanes, 1 + max_length): the length of each text, then its code points."""
    codes = np.frombuffer(memory.get_obj(), dtype=np.uint32)  # type: ignore[call-overload]
    return codes.reshape(-1, 1 + max_length)


@create_shared_memory.register(UnicodeText)
def _create(space: UnicodeText, n: int = 1, ctx: Any = None) -> "SharedArray":
    return ctx.Array(np.dtype(np.uint32).char, n * (1 + space.max_length))


@read_from_shared_memory.register(UnicodeText)
def _read(space: UnicodeText, shared_memory: "SharedArray", n: int = 1) -> Sequence[str]:
    return _SharedTexts(shared_memory, n, space.max_length)


@write_to_shared_memory.register(UnicodeText)
def _write(space: UnicodeText, index: int, value: str, shared_memory: "SharedArray") -> None:
    codes = np.frombuffer(value.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    row = _rows(shared_memory, space.max_length)[index]
    row[0] = len(codes)
    row[1 : 1 + len(codes)] = codes
