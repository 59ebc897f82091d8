"""FactDatabase: what was loaded is what is read, alone, in batches, by threads and processes."""

import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from itl_env.database import IN_LIST, PAGE_ROWS, FactDatabase
from itl_env.errors import DatabaseError
from itl_env.facts import Fact, Person, people

N = 10_000


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'facts.db'}"
    FactDatabase.create(url, people(N)).close()
    return url


@pytest.fixture
def database(sqlite_url) -> Iterator[FactDatabase]:
    with FactDatabase(sqlite_url) as database:
        yield database


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


def test_reading_never_writes(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    before = path.read_bytes(), sorted(path.parent.iterdir())
    with FactDatabase(sqlite_url) as database:
        list(database.facts(0, 100))
        with database._engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
            connection.exec_driver_sql("DELETE FROM people")
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


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
