"""FactDatabase on files and servers that are missing, refuse or break, and what its errors say."""

import os
import pickle
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from itl_env import connection as connection_module
from itl_env.database import FactDatabase
from itl_env.errors import DatabaseError, EnvironmentFailure
from itl_env.facts import people


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
    with pytest.raises(DatabaseError, match=r"psycopg\[binary\]"):
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
