"""What tests of the world share: databases of every kind, and a small one to play on."""

import pytest

from itl_env import FactDatabase, RecallTask, people


class Place:
    """A kind of database and where the next table goes."""

    def __init__(self, url: str, table: str) -> None:
        self.url = url
        self.table = table


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def place(request, tmp_path) -> Place:
    """A database of each kind that people can be loaded into, with nothing in it yet."""
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'facts.db'}", "people")
    if request.param == "memory":
        return Place("sqlite://", "people")
    schema = request.getfixturevalue("postgres_schema")
    return Place(request.getfixturevalue("postgres"), f"{schema}.people")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The URL of a SQLite database of 50 people of the paper's world."""
    path = tmp_path_factory.mktemp("gym") / "facts.db"
    FactDatabase.create(f"sqlite:///{path}", people(50, seed=0)).close()
    return f"sqlite:///{path}"


@pytest.fixture
def task(url):
    """The recall task of those people."""
    return RecallTask(FactDatabase(url))
