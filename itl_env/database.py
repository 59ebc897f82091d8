"""FactDatabase: any table of any database as a set of facts.

    with FactDatabase("sqlite:///facts.db") as database:
        database.lookup([("Ada Lovelace", "birth_place"), ("Nobody", "birth_place")])
        # ["London", None]

A row is a person (or a country, an artist, ...): the key column names it and the attribute columns
hold what is known of it. Values that are not text are given as `str(value)` of what the driver
returns, bytes as hexadecimal digits, everywhere alike. `FactDatabase.create` makes a table of ours.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.compiler import SQLCompiler

from itl_env.connection import is_sqlite, make_engine, parse_url, public_url, reason, sqlite_path
from itl_env.errors import DatabaseError, EnvironmentFailure
from itl_env.facts import Fact
from itl_env.load import create_table
from itl_env.table import inspect_table
from itl_env.text import unstorable

Row = Sequence[Any]

PAGE_ROWS = 4096
ANCHOR_EVERY = 256
# Databases without array parameters get IN lists of at most this many names.
IN_LIST = 1000


class FactDatabase:
    """An existing table, opened for reading; its rows have a fixed order and an index 0..len-1.

    `database` is a SQLAlchemy URL or the path of a SQLite file; `postgresql://` means psycopg 3,
    and there `table` may be "schema.table". `attributes` are by default all columns but the key and
    the integer primary key. The key must be text or integer, carry an index, and be neither NULL
    nor duplicated; attributes may not be NULL. Raises DatabaseError where that does not hold.

    The order is that of the integer primary key where the table has one, else that of the key. The
    table must not change while it is open.

    `url` has no password and may be written anywhere. The address with its password stays in a
    private `sqlalchemy.URL`, which shows it in no repr; a pickle of this object does contain it, so
    that it can reconnect in another process: keep pickles out of runs and logs, or give the
    password to libpq (PGPASSWORD, ~/.pgpass) and leave it out of the address. Objects connect
    lazily after unpickling and after a fork, and may be shared by threads.
    """

    url: str
    place: str  # table and address, as messages name them
    table: str
    key: str
    attributes: tuple[str, ...]

    def __init__(
        self,
        database: str | os.PathLike[str] | sa.URL,
        *,
        table: str = "people",
        key: str = "name",
        attributes: Sequence[str] | None = None,
    ) -> None:
        url = parse_url(database)
        path = sqlite_path(url)
        if path is not None and not path.is_file():
            raise DatabaseError(
                f"there is no database file {path}; "
                "make one with FactDatabase.create or `itl facts build`"
            )
        self._open(url, make_engine(url, path), table, key, attributes)

    @classmethod
    def create(
        cls,
        database: str | os.PathLike[str] | sa.URL,
        people: Iterable[Any],
        *,
        table: str = "people",
        key: str = "name",
        replace: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Load people (NamedTuples or mappings, streamed) into a new table and open it.

        SQLite (a file, or `sqlite://` for memory) and PostgreSQL. All or nothing: an error or an
        interrupt leaves things as they were. `progress` gets the number of people loaded so far.
        Raises DatabaseError where the table exists and `replace` is false, and for duplicate keys.
        """
        url = parse_url(database)
        engine = create_table(url, people, table=table, key=key, replace=replace, progress=progress)
        self = cls.__new__(cls)
        self._open(url, engine, table, key, None)
        return self

    def __len__(self) -> int:
        return self._info.length

    def names(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The keys of rows start..stop-1 in the fixed order, streamed. Raises IndexError."""
        rows = self._rows(start, stop, [self.key])
        return (_text(name) for (name,) in rows)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, str]]:
        """Rows start..stop-1 as dicts of key and attributes, streamed. Raises IndexError."""
        columns = [self.key, *self.attributes]
        rows = self._rows(start, stop, columns)
        return (dict(zip(columns, map(_text, row), strict=True)) for row in rows)

    def facts(
        self, start: int = 0, stop: int | None = None, attributes: Sequence[str] | None = None
    ) -> Iterator[Fact]:
        """The facts of rows start..stop-1, streamed, all attributes of a row one after the other.

        Raises IndexError, and DatabaseError for an unknown attribute.
        """
        wanted = self.attributes if attributes is None else tuple(attributes)
        self._check_attributes(wanted)
        rows = self._rows(start, stop, [self.key, *wanted])
        return (
            Fact(_text(name), attribute, _text(value))
            for name, *values in rows
            for attribute, value in zip(wanted, values, strict=True)
        )

    def fact(self, index: int, attribute: str) -> Fact:
        """One fact by the index of its row, in constant time. Raises IndexError, DatabaseError."""
        self._check_attributes([attribute])
        if not 0 <= index < self._info.length:
            raise IndexError(f"row {index} is not in 0..{self._info.length - 1}")
        ((name, value),) = self._rows(index, index + 1, [self.key, attribute])
        return Fact(_text(name), attribute, _text(value))

    def facts_at(self, places: Sequence[tuple[int, str]]) -> list[Fact]:
        """The fact of each (row index, attribute); one statement for all where rows are numbered
        without gaps, as those of `create` are. Raises IndexError, DatabaseError.
        """
        if self._info.first is None or len(places) < 2:
            return [self.fact(index, attribute) for index, attribute in places]
        asked = {attribute for _, attribute in places}
        self._check_attributes(asked)
        if outside := [index for index, _ in places if not 0 <= index < self._info.length]:
            raise IndexError(f"row {outside[0]} is not in 0..{self._info.length - 1}")
        first, columns = self._info.first, tuple(name for name in self.attributes if name in asked)
        position = {column: i for i, column in enumerate(columns, start=2)}
        numbers: list[str | int] = [first + index for index in {index for index, _ in places}]
        found = {row[0]: row for row in self._find(self._info.order, numbers, (self.key, *columns))}
        if len(found) < len(numbers):
            raise EnvironmentFailure(f"{self.place} has lost rows since it was opened")
        return [
            Fact(_text((row := found[first + i])[1]), attribute, _text(row[position[attribute]]))
            for i, attribute in places
        ]

    def lookup(self, queries: Sequence[tuple[str, str]]) -> list[str | None]:
        """The value of each (name, attribute), None for an unknown name; one statement for all.

        Names match exactly, character by character. Raises DatabaseError for an unknown attribute
        (check `attribute in database.attributes` first) and EnvironmentFailure where the database
        fails.
        """
        asked = {attribute for _, attribute in queries}
        if not asked <= set(self.attributes):
            self._check_attributes([attribute for _, attribute in queries])
        names = {name for name, _ in queries}
        keys = [key for key in map(self._as_key, names) if key is not None]
        columns = tuple(attribute for attribute in self.attributes if attribute in asked)
        position = {column: i for i, column in enumerate(columns, start=1)}
        # The dict compares in Python: a column with a case-insensitive collation may find too much.
        found = {_text(row[0]): row for row in self._find(self.key, keys, columns)}
        return [
            _text(row[position[attribute]]) if (row := found.get(name)) is not None else None
            for name, attribute in queries
        ]

    def close(self) -> None:
        """Close all connections; a later lookup opens a new one."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"FactDatabase({self.url!r}, table={self.table!r}, key={self.key!r}, "
            f"attributes={list(self.attributes)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        if is_sqlite(self._url) and self.path is None:
            raise DatabaseError("an in-memory database cannot be pickled; create it in a file")
        state = self.__dict__.copy()
        for name in ("_engine", "_pid", "_compiled"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use(make_engine(self._url, self.path))

    def _open(
        self,
        url: sa.URL,
        engine: sa.Engine,
        table: str,
        key: str,
        attributes: Sequence[str] | None,
    ) -> None:
        self._url = url
        self._use(engine)
        self.url, self.path, self.table, self.key = public_url(url), sqlite_path(url), table, key
        self.place = f"table {table!r} of {self.url}"
        self._anchors: list[Any] | None = None
        try:
            with engine.connect() as connection:
                self._info = inspect_table(connection, table, key, attributes, self.url)
        except sa.exc.SQLAlchemyError as error:
            engine.dispose()
            raise DatabaseError(f"cannot read {self.place}: {reason(error, url)}") from error
        except DatabaseError:
            engine.dispose()
            raise
        self.attributes = self._info.attributes

    def _use(self, engine: sa.Engine) -> None:
        self._engine, self._pid = engine, os.getpid()
        self._compiled: dict[tuple[Any, ...], SQLCompiler] = {}

    # Reading.

    def _connect(self) -> sa.PoolProxiedConnection:
        if self._pid != os.getpid():
            # After a fork the connections are the parent's: forget them, do not close them.
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine.raw_connection()

    def _read(self, statement: SQLCompiler, values: dict[str, Any]) -> list[Row]:
        # The driver's own cursor: SQLAlchemy's results would take half the time of small lookups.
        parameters: Any = statement.construct_params(values)
        if statement.positiontup is not None:
            parameters = [parameters[name] for name in statement.positiontup]
        try:
            connection = self._connect()
            try:
                cursor = connection.cursor()
                cursor.execute(str(statement), parameters)
                return list(cursor.fetchall())
            except BaseException:
                connection.invalidate()
                raise
            finally:
                connection.close()
        except (self._engine.dialect.loaded_dbapi.Error, sa.exc.SQLAlchemyError, OSError) as error:
            why = reason(error, self._url)
            raise EnvironmentFailure(f"{self.place} cannot be read: {why}") from error

    def _compile(self, statement: sa.Select[Any]) -> SQLCompiler:
        compiled = statement.compile(dialect=self._engine.dialect)
        assert isinstance(compiled, SQLCompiler)
        return compiled

    def _as_key(self, name: str) -> str | int | None:
        """The name as a value of the key column; None where no row can have it."""
        if self._info.key_is_integer:
            try:
                number = int(name)
            except ValueError:
                return None
            return number if str(number) == name and -(2**63) <= number < 2**63 else None
        return None if unstorable(name) else name

    def _find(self, by: str, values: list[str | int], columns: tuple[str, ...]) -> list[Row]:
        """The column `by` and `columns` of the rows with the given values of `by`."""
        if not values:
            return []
        dialect = self._engine.dialect.name
        if dialect in ("sqlite", "postgresql"):
            given = _json(values) if dialect == "sqlite" else values
            return self._read(self._array_lookup(by, columns), {"given": given})
        rows: list[Row] = []
        for start in range(0, len(values), IN_LIST):
            part = {f"given_{i}": value for i, value in enumerate(values[start : start + IN_LIST])}
            statement, table = self._select(by, columns)
            statement = statement.where(table.c[by].in_([sa.bindparam(name) for name in part]))
            rows += self._read(self._compile(statement), part)
        return rows

    def _array_lookup(self, by: str, columns: tuple[str, ...]) -> SQLCompiler:
        """A lookup with all values in one parameter: JSON in SQLite, an array in PostgreSQL."""
        index = ("lookup", by, *columns)
        if index in self._compiled:
            return self._compiled[index]
        statement, table = self._select(by, columns)
        values: sa.BindParameter[Any] = sa.bindparam("given")
        if self._engine.dialect.name == "sqlite":
            given = sa.func.json_each(values).table_valued("value", name="given")
            statement = statement.join_from(given, table, table.c[by] == given.c.value)
        else:
            is_integer = by == self._info.order != self.key or self._info.key_is_integer
            array = ARRAY(sa.BigInteger if is_integer else sa.Text)
            statement = statement.where(table.c[by] == sa.any_(sa.cast(values, array)))
        return self._compiled.setdefault(index, self._compile(statement))

    def _select(self, by: str, columns: Iterable[str]) -> tuple[sa.Select[Any], sa.TableClause]:
        table = self._info.clause()
        # Labels, since `by` may be asked for as well.
        return sa.select(table.c[by], *(table.c[name].label(None) for name in columns)), table

    def _rows(self, start: int, stop: int | None, columns: list[str]) -> Iterator[Row]:
        stop = self._info.length if stop is None else stop
        if not 0 <= start <= stop <= self._info.length:
            raise IndexError(f"rows {start}..{stop} are not in 0..{self._info.length}")
        return self._pages(start, stop, columns)

    def _pages(self, start: int, stop: int, columns: list[str]) -> Iterator[Row]:
        """Page by page from the last value seen, so that an unfinished iterator holds no cursor."""
        if start == stop:
            return
        value, offset = self._seek(start)
        page = self._page(columns, first=True)
        while start < stop:
            limit = min(PAGE_ROWS, stop - start)
            rows = self._read(page, {"value": value, "offset": offset, "limit": limit})
            if len(rows) < limit:
                raise EnvironmentFailure(f"{self.place} has lost rows since it was opened")
            for row in rows:
                yield row[1:]
            start += limit
            value, offset = rows[-1][0], 0
            page = self._page(columns, first=False)

    def _page(self, columns: list[str], first: bool) -> SQLCompiler:
        """Rows in order, from a value of the order column (first page) or after it."""
        index = ("page", first, *columns)
        if index not in self._compiled:
            table = self._info.clause()
            order = table.c[self._info.order]
            value: sa.BindParameter[Any] = sa.bindparam("value")
            # Labels, since the order column may be asked for as well.
            selected = sa.select(order, *(table.c[column].label(None) for column in columns))
            page = selected.where(order >= value if first else order > value).order_by(order)
            page = page.limit(sa.bindparam("limit")).offset(sa.bindparam("offset"))
            self._compiled[index] = self._compile(page)
        return self._compiled[index]

    def _seek(self, index: int) -> tuple[Any, int]:
        """A value of the order column, and the rows to skip from there to reach row `index`."""
        if self._info.first is not None:
            return self._info.first + index, 0
        if self._anchors is None:
            table = self._info.clause()
            order = table.c[self._info.order]
            position = sa.func.row_number().over(order_by=order).label("position")
            ranked = sa.select(order.label("value"), position).subquery()
            anchors = sa.select(ranked.c.value).where((ranked.c.position - 1) % ANCHOR_EVERY == 0)
            rows = self._read(self._compile(anchors.order_by(ranked.c.position)), {})
            self._anchors = [value for (value,) in rows]
        return self._anchors[index // ANCHOR_EVERY], index % ANCHOR_EVERY

    def _check_attributes(self, attributes: Iterable[str]) -> None:
        for attribute in attributes:
            if attribute not in self.attributes:
                raise DatabaseError(
                    f"{self.place} has no attribute {attribute!r}; "
                    f"it has {', '.join(self.attributes)}"
                )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _json(keys: list[str | int]) -> str:
    return json.dumps(keys, ensure_ascii=False)
