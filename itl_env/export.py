"""Facts as files and datasets: JSONL, Parquet, plain biographies, `datasets.Dataset`.

Every export takes rows: mappings of column to text, the key (the name) first, so people and any
fact database export alike. Rows are streamed, and a file appears only when it is complete.

    write_parquet(people(1_000_000, vocabulary="large"), "people.parquet")
    dataset = to_dataset({"text": biography(row)} for row in rows)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from itl_env.dialogue import statement
from itl_env.errors import ConfigError
from itl_env.facts import Person
from itl_env.files import whole_file

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Row = Mapping[str, str | None]  # None is a value that is not known

_BATCH = 2**16  # rows per Parquet row group and Arrow record batch


def write_jsonl(rows: Iterable[Row | Person], path: str | Path) -> int:
    """One JSON object per line, UTF-8. Returns the number of rows.

    Raises ConfigError if `path` cannot be written.
    """
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with whole_file(path) as temporary, _text(temporary) as file:
        n_rows = 0
        for row in rows:
            file.write(encode(dict(_mapping(row))) + "\n")
            n_rows += 1
    return n_rows


def write_biographies(rows: Iterable[Row | Person], path: str | Path) -> int:
    """One `biography` per line, UTF-8: text for continued pretraining. Returns the number of rows.

    Raises ConfigError if `path` cannot be written.
    """
    with whole_file(path) as temporary, _text(temporary) as file:
        n_rows = 0
        for row in rows:
            file.write(biography(row) + "\n")
            n_rows += 1
    return n_rows


def write_parquet(rows: Iterable[Row | Person], path: str | Path) -> int:
    """A Parquet file with one text column per column of the rows. Returns the number of rows.

    Raises ConfigError if `path` cannot be written, there are no rows, or their columns differ.
    """
    import pyarrow.parquet as pq

    with whole_file(path) as temporary:
        first, batches = _batches(rows)
        n_rows = 0
        with pq.ParquetWriter(temporary, first.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                n_rows += batch.num_rows
    return n_rows


def to_dataset(rows: Iterable[Row | Person]) -> "datasets.Dataset":
    """The rows as a dataset in memory, about 70 bytes per person.

    For a dataset that stays on disk: `datasets.Dataset.from_parquet` on a file of `write_parquet`.
    Raises ConfigError if there are no rows or their columns differ.
    """
    import datasets
    import pyarrow as pa

    _, batches = _batches(rows)
    return datasets.Dataset(pa.Table.from_batches(batches))


def biography(row: Row | Person) -> str:
    """All that is known about the row's key, one sentence per attribute.

    >>> biography({"name": "Ann Lee", "birth_date": "7/3/1984", "occupation": "actor"})
    'Ann Lee was born on 7/3/1984. Ann Lee works as an actor.'
    """
    (_, name), *known = _mapping(row).items()
    return " ".join(statement(a, str(name), value) for a, value in known if value is not None)


def _mapping(row: Row | Person) -> Row:
    return row._asdict() if isinstance(row, Person) else row


def _batches(
    rows: Iterable[Row | Person],
) -> tuple["pa.RecordBatch", Iterator["pa.RecordBatch"]]:
    """The first Arrow batch, for its schema, and an iterator over all of them with it."""
    import pyarrow as pa

    def convert() -> Iterator[pa.RecordBatch]:
        remaining = map(_mapping, rows)
        schema = None
        while batch := list(islice(remaining, _BATCH)):
            schema = schema or pa.schema([(column, pa.string()) for column in batch[0]])
            for row in batch:
                if list(row) != schema.names:
                    raise ConfigError(
                        f"all rows of an export need the same columns: found {', '.join(row)} "
                        f"after {', '.join(schema.names)}."
                    )
            columns = [[row[column] for row in batch] for column in schema.names]
            yield pa.RecordBatch.from_arrays(
                [pa.array(c, pa.string()) for c in columns], schema=schema
            )

    batches = convert()
    first = next(batches, None)
    if first is None:
        raise ConfigError("there are no rows to export.")
    return first, chain([first], batches)


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")
