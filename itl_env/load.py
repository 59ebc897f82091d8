"""Bulk loading of people into a new table: executemany for SQLite, COPY for PostgreSQL.

The table gets a surrogate integer primary key `id` (0, 1, ... in the order of the stream) and text
columns; the index on the key is built after the rows, which is several times faster than growing
it. All happens in one transaction, and a new SQLite file is built beside its place and renamed, so
that an interrupted load leaves nothing behind. The stream is never held in memory.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from itl_env.connection import (
    is_sqlite,
    make_engine,
    memory_engine,
    public_url,
    reason,
    sqlite_path,
)
from itl_env.errors import DatabaseError
from itl_env.text import quote, unstorable

Progress = Callable[[int], None]
Row = tuple[str, ...]
Blocks = Iterator[tuple[int, list[Row]]]

SURROGATE_KEY = "id"
BLOCK_ROWS = 10_000


def create_table(
    url: sa.URL,
    people: Iterable[Any],
    *,
    table: str,
    key: str,
    replace: bool,
    progress: Progress | None,
) -> sa.Engine:
    """Load `people` (NamedTuples or mappings) and return an engine that reads the result."""
    stream = iter(people)
    first = next(stream, None)
    if first is None:
        raise DatabaseError(f"there are no people to load into table {table!r}")
    columns = _columns(first, key)
    blocks = _blocks(chain([first], stream), columns, progress)
    path = sqlite_path(url)
    if is_sqlite(url):
        if path is not None:
            _load_sqlite_file(path, table, key, columns, blocks, replace)
            return make_engine(url, path)
        memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        _load_sqlite(memory, "the in-memory database", table, key, columns, blocks, replace)
        return memory_engine(memory)
    if url.drivername == "postgresql+psycopg":
        engine = make_engine(url, None)
        _load_postgres(engine, table, key, columns, blocks, replace)
        return engine
    raise DatabaseError(
        f"tables can be created in SQLite and PostgreSQL, not in {url.get_backend_name()}; "
        "load the table with that database's own tools and open it with FactDatabase"
    )


def _columns(first: Any, key: str) -> tuple[str, ...]:
    if isinstance(first, Mapping):
        columns = tuple(first)
    elif isinstance(first, tuple) and hasattr(first, "_fields"):
        columns = tuple(first._fields)
    else:
        raise DatabaseError(
            f"a person must be a NamedTuple or a mapping, got {type(first).__name__}"
        )
    if key not in columns:
        raise DatabaseError(f"people have no field {key!r} to be the key; they have {columns}")
    if any(column.lower() == SURROGATE_KEY for column in columns):
        raise DatabaseError(f"people may not have a field {SURROGATE_KEY!r}: it numbers the rows")
    return columns


def _blocks(
    people: Iterable[Any], columns: tuple[str, ...], progress: Progress | None
) -> Iterator[tuple[int, list[Row]]]:
    """Rows of text that every database can hold, thousands at a time, with the first's index."""
    stream, start = iter(people), 0
    while block := list(islice(stream, BLOCK_ROWS)):
        # The whole block is checked at once, since checking row by row takes as long as inserting.
        tuples = all(issubclass(kind, tuple) for kind in set(map(type, block)))
        if not tuples or set(map(len, block)) != {len(columns)} or not _is_storable(block):
            block = [_row(person, start + i, columns) for i, person in enumerate(block)]
        yield start, block
        start += len(block)
        if progress is not None:
            progress(start)


def _is_storable(rows: Iterable[Row]) -> bool:
    try:
        return unstorable("".join(chain.from_iterable(rows))) is None
    except TypeError:  # not text
        return False


def _row(person: Any, index: int, columns: tuple[str, ...]) -> Row:
    """One person's values as text. Raises DatabaseError, which says what is wrong with whom."""
    if isinstance(person, Mapping):
        if person.keys() != set(columns):
            raise DatabaseError(f"person {index} has fields {tuple(person)}, not {columns}")
        person = tuple(person[column] for column in columns)
    if not isinstance(person, tuple):
        raise DatabaseError(f"person {index} is neither a NamedTuple nor a mapping: {person!r}")
    if len(person) != len(columns):
        raise DatabaseError(f"person {index} has {len(person)} values for {columns}")
    if None in person:
        raise DatabaseError(f"person {index} has an empty (None) value among {columns}")
    row = tuple(str(value) for value in person)
    if not _is_storable([row]):
        raise DatabaseError(f"person {index} has a NUL or a lone surrogate in its text")
    return row


def _load_sqlite_file(
    path: Path,
    table: str,
    key: str,
    columns: tuple[str, ...],
    blocks: Blocks,
    replace: bool,
) -> None:
    if not path.parent.is_dir():
        raise DatabaseError(f"the folder {path.parent} for the new database does not exist")
    if path.exists():
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                _load_sqlite(connection, str(path), table, key, columns, blocks, replace)
        except sqlite3.Error as error:
            raise DatabaseError(f"cannot write table {table!r} to {path}: {error}") from error
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            # No journal and no syncing: a file that is not finished is thrown away.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            _load_sqlite(connection, str(path), table, key, columns, blocks, replace)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except sqlite3.Error as error:
        raise DatabaseError(f"cannot create the database {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _load_sqlite(
    connection: sqlite3.Connection,
    place: str,
    table: str,
    key: str,
    columns: tuple[str, ...],
    blocks: Blocks,
    replace: bool,
) -> None:
    connection.execute("PRAGMA cache_size = -200000")
    connection.execute("BEGIN IMMEDIATE")
    try:
        known = "SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type = 'table'"
        if connection.execute(known, (table,)).fetchone():
            if not replace:
                raise _exists(table, place)
            connection.execute(f"DROP TABLE {quote(table)}")
        connection.execute(
            f"CREATE TABLE {quote(table)} ({quote(SURROGATE_KEY)} INTEGER PRIMARY KEY, "
            + ", ".join(f"{quote(column)} TEXT NOT NULL" for column in columns)
            + ")"
        )
        insert = f"INSERT INTO {quote(table)} VALUES ({', '.join('?' * (len(columns) + 1))})"
        for start, rows in blocks:
            connection.executemany(insert, [(i, *row) for i, row in enumerate(rows, start)])
        try:
            connection.execute(
                f"CREATE UNIQUE INDEX {quote(f'{table}_{key}')} ON {quote(table)} ({quote(key)})"
            )
        except sqlite3.IntegrityError as error:
            (duplicate,) = connection.execute(
                f"SELECT {quote(key)} FROM {quote(table)} GROUP BY 1 HAVING count(*) > 1 LIMIT 1"
            ).fetchone()
            raise _duplicate(key, f"{duplicate!r} occurs more than once") from error
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _load_postgres(
    engine: sa.Engine,
    table: str,
    key: str,
    columns: tuple[str, ...],
    blocks: Blocks,
    replace: bool,
) -> None:
    import psycopg

    place = public_url(engine.url)
    target = ".".join(quote(part) for part in table.split(".", 1))
    # The C collation makes the key's order the same on every server and its index fast to build.
    definitions = [
        f"{quote(column)} TEXT {'COLLATE ' + quote('C') if column == key else ''} NOT NULL"
        for column in columns
    ]
    try:
        with closing(engine.raw_connection()) as pooled:
            connection: Any = pooled.dbapi_connection
            with connection.transaction(), connection.cursor() as cursor:
                if cursor.execute("SELECT to_regclass(%s)", (target,)).fetchone()[0] is not None:
                    if not replace:
                        raise _exists(table, place)
                    cursor.execute(f"DROP TABLE {target}")
                cursor.execute(
                    f"CREATE TABLE {target} ({quote(SURROGATE_KEY)} INTEGER, "
                    + ", ".join(definitions)
                    + ")"
                )
                cursor.execute("SET LOCAL maintenance_work_mem = '256MB'")
                with cursor.copy(f"COPY {target} FROM STDIN (FREEZE)") as copy:
                    for start, rows in blocks:
                        copy.write(_copy_text(start, rows))
                cursor.execute(
                    f"ALTER TABLE {target} ADD PRIMARY KEY ({quote(SURROGATE_KEY)}), "
                    f"ADD UNIQUE ({quote(key)})"
                )
                cursor.execute(f"ANALYZE {target}")
    except psycopg.errors.UniqueViolation as error:
        raise _duplicate(key, error.diag.message_detail or "") from error
    except (psycopg.Error, sa.exc.SQLAlchemyError) as error:
        why = reason(error, engine.url)
        raise DatabaseError(f"cannot create table {table!r} in {place}: {why}") from error


_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _copy_text(start: int, rows: list[Row]) -> str:
    """Rows in COPY's text format: one call for each row would cost more than the rest."""
    text = "".join(chain.from_iterable(rows))
    if any(character in text for character in "\\\t\n\r"):
        rows = [tuple(value.translate(_COPY_ESCAPES) for value in row) for row in rows]
    return "".join(["\t".join((str(i), *row)) + "\n" for i, row in enumerate(rows, start)])


def _exists(table: str, place: str) -> DatabaseError:
    return DatabaseError(
        f"there is a table {table!r} in {place} already; "
        "choose another name, or replace it (replace=True; --replace on the command line)"
    )


def _duplicate(key: str, detail: str) -> DatabaseError:
    return DatabaseError(f"the key {key!r} must be different for each person, but {detail}")
