"""What a table must be to serve as a set of facts; all is checked once, when it is opened."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from itl_env.errors import DatabaseError


@dataclass(frozen=True)
class Table:
    """A table found fit, and what the checks learned about it."""

    schema: str | None
    name: str
    columns: tuple[str, ...]
    key: str
    key_is_integer: bool
    attributes: tuple[str, ...]
    length: int  # rows
    order: str  # the column that gives the rows their fixed order
    first: int | None  # the value of `order` in row 0 where it has no gaps

    def clause(self) -> sa.TableClause:
        """For statements; columns have no types here, so that values stay as drivers give them."""
        return sa.table(self.name, *map(sa.column, self.columns), schema=self.schema)


def inspect_table(
    connection: sa.Connection,
    table: str,
    key: str,
    attributes: Sequence[str] | None,
    place: str,
) -> Table:
    """Reflect and check a table; `place` names its database. Raises DatabaseError."""
    where = f"table {table!r} of {place}"
    inspector = sa.inspect(connection)
    schema, name = _split(table, connection.dialect)
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise DatabaseError(f"{place} has the encoding {encoding}, but UTF8 is needed")
    if not inspector.has_table(name, schema):
        known = ", ".join(sorted(inspector.get_table_names(schema))) or "no tables"
        raise DatabaseError(f"{place} has no table {table!r}; it has {known}")

    columns = {column["name"]: column for column in inspector.get_columns(name, schema)}
    if key not in columns:
        raise DatabaseError(f"{where} has no key column {key!r}; it has {', '.join(columns)}")
    key_type = columns[key]["type"]
    if not isinstance(key_type, (sa.String, sa.Integer)) or isinstance(key_type, sa.Enum):
        raise DatabaseError(
            f"the key {key!r} of {where} is of type {key_type}, but it must be text or an integer"
        )
    primary = inspector.get_pk_constraint(name, schema)["constrained_columns"]
    integer_primary = None
    if len(primary) == 1 and isinstance(columns[primary[0]]["type"], sa.Integer):
        integer_primary = primary[0]

    if attributes is None:
        attributes = [column for column in columns if column not in (key, integer_primary)]
    if unknown := [attribute for attribute in attributes if attribute not in columns]:
        raise DatabaseError(f"{where} has no column {unknown[0]!r}; it has {', '.join(columns)}")
    if not attributes or len(set(attributes)) < len(attributes):
        raise DatabaseError(
            f"the attributes of {where} must be one or more different columns; besides the key "
            f"{key!r} it has {', '.join(c for c in columns if c != key) or 'none'}"
        )

    indexes, unique_indexes = _indexes(inspector, name, schema, primary)
    if not any(index[0] == key for index in indexes):
        quote = connection.dialect.identifier_preparer.quote_identifier
        target = ".".join(quote(part) for part in (schema, name) if part)
        raise DatabaseError(
            f"the key {key!r} of {where} carries no index, and each lookup would read the whole "
            f"table; run: CREATE UNIQUE INDEX {quote(f'{name}_{key}')} ON {target} ({quote(key)})"
        )

    clause = sa.table(name, *map(sa.column, columns), schema=schema)
    nullable = [c for c in (key, *attributes) if columns[c].get("nullable", True)]
    length = _count(connection, clause, key, nullable, where)
    if [key] not in unique_indexes:
        _check_unique(connection, clause, key, where)
    order, first = _order(connection, clause, key, integer_primary, length)
    return Table(
        schema=schema,
        name=name,
        columns=tuple(columns),
        key=key,
        key_is_integer=isinstance(key_type, sa.Integer),
        attributes=tuple(attributes),
        length=length,
        order=order,
        first=first,
    )


def _split(table: str, dialect: sa.Dialect) -> tuple[str | None, str]:
    """Schema and name: a dot separates them, except in SQLite, where it is part of the name."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot and dialect.name != "sqlite" else (None, table)


Indexes = list[list[str | None]]


def _indexes(
    inspector: sa.Inspector, name: str, schema: str | None, primary: list[str]
) -> tuple[Indexes, Indexes]:
    """The columns of each index over all rows (None for an expression), and of the unique ones."""
    unique: Indexes = [
        list(constraint["column_names"])
        for constraint in inspector.get_unique_constraints(name, schema)
    ]
    if primary:
        unique.append(list(primary))
    automatic = {"include_auto_indexes": True} if inspector.dialect.name == "sqlite" else {}
    ordinary: Indexes = []
    # SQLite keeps a UNIQUE that is written behind a column as an index of its own making.
    for index in inspector.get_indexes(name, schema, **automatic):
        options = index.get("dialect_options", {})
        if not any(option.endswith("_where") for option in options):
            (unique if index["unique"] else ordinary).append(list(index["column_names"]))
    return ordinary + unique, unique


def _count(
    connection: sa.Connection, table: sa.TableClause, key: str, nullable: list[str], where: str
) -> int:
    """The number of rows; refuses none at all, and NULL where no constraint excludes it."""
    counts = [sa.func.count(table.c[column]) for column in nullable]
    length, *filled = connection.execute(
        sa.select(sa.func.count(), *counts).select_from(table)
    ).one()
    if not length:
        raise DatabaseError(f"{where} is empty")
    empty = {column: length - n for column, n in zip(nullable, filled, strict=True)}
    if empty.get(key):
        raise DatabaseError(f"the key {key!r} of {where} is NULL in {empty[key]} rows")
    if missing := [f"{column!r} in {n} rows" for column, n in empty.items() if n]:
        raise DatabaseError(
            f"{where} has NULL values: {', '.join(missing)}; fill them or choose other attributes"
        )
    return int(length)


def _check_unique(connection: sa.Connection, table: sa.TableClause, key: str, where: str) -> None:
    column = table.c[key]
    duplicates = sa.select(column).group_by(column).having(sa.func.count() > 1).limit(1)
    if (duplicate := connection.execute(duplicates).first()) is not None:
        raise DatabaseError(
            f"the key {key!r} of {where} is not unique: {duplicate[0]!r} occurs more than once"
        )


def _order(
    connection: sa.Connection,
    table: sa.TableClause,
    key: str,
    integer_primary: str | None,
    length: int,
) -> tuple[str, int | None]:
    """The order column, and the value it starts to count from if it has no gaps."""
    if integer_primary is None:
        return key, None
    column = table.c[integer_primary]
    first, last, filled = connection.execute(
        sa.select(sa.func.min(column), sa.func.max(column), sa.func.count(column))
    ).one()
    # SQLite lets an "INT PRIMARY KEY", unlike an "INTEGER PRIMARY KEY", hold NULL and text.
    if filled < length or not isinstance(first, int) or not isinstance(last, int):
        return key, None
    return integer_primary, first if last - first + 1 == length else None
