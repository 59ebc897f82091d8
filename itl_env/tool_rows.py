"""Raw rows of tool calling, of files and of the hub, each with where it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from itl_env import streams
from itl_env.errors import ConfigError, ITLError
from itl_env.json_rows import read_json_rows

HubSource = Literal["gsm8k", "python", "instructions"]

HUB: dict[HubSource, tuple[str, str | None]] = {
    "gsm8k": ("openai/gsm8k", "main"),
    "python": ("iamtarun/python_code_instructions_18k_alpaca", None),
    "instructions": ("tatsu-lab/alpaca", None),
}
"""The data of the published mix on the hub: repository and configuration."""


class Row(NamedTuple):
    """A raw row; `place` counts from 1."""

    place: int
    where: str
    values: Any


@dataclass(frozen=True)
class Rows:
    """The raw rows of a source.

    name: says where they are. values: the rows, by index.
    """

    name: str
    values: Sequence[Any]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Row]:
        return (self._row(index) for index in range(len(self)))

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in an order that only the seed and their number decide."""
        key = streams.key(seed, "tool_data", "rows")
        order = streams.permute(np.arange(len(self)), len(self), key)
        return (self._row(int(index)) for index in order)

    def _row(self, index: int) -> Row:
        return Row(index + 1, f"{self.name}, row {index + 1}", self.values[index])


def read_rows(file: str | Path) -> Rows:
    """The rows of a file: JSON lines or a JSON array, also compressed (.gz), or .parquet.

    Raises ConfigError if it cannot be read, with the line that is not JSON.
    """
    path = Path(file)
    if path.suffix == ".parquet":
        return Rows(str(path), _parquet(path))
    return Rows(str(path), [row for _, row in read_json_rows(path)])


def _parquet(path: Path) -> Sequence[Any]:
    import datasets

    if not path.is_file():
        raise ConfigError(f"Cannot read rows from {path}: No such file or directory.")
    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # it raises what its readers raise
        raise ConfigError(f"Cannot read rows from {path}: {_first_line(error)}.") from None


def hub_rows(source: HubSource, repository: str | None = None, config: str | None = None) -> Rows:
    """The training rows of a source on the hub.

    source: one of `HUB`. repository, config: another repository of the same columns, or a folder.

    Raises ITLError if it cannot be had, which names the flag that takes a file instead.
    """
    import datasets

    if repository is None:
        repository, config = HUB[source]
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(repository, config, split="train")
    except Exception as error:  # it raises what its readers raise
        raise ITLError(
            f"{repository} cannot be had from the hub: {_first_line(error)}; a local file of its "
            f"rows serves as well (--{source} FILE)."
        ) from error
    return Rows(repository, rows)


def _first_line(error: Exception) -> str:
    said = str(error).strip()
    return (said.splitlines()[0] if said else repr(error)).rstrip(".")
