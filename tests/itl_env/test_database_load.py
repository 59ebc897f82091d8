"""FactDatabase.create: any text is loaded as it is, and a failed load leaves nothing behind."""

from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

import pytest

from itl_env.database import FactDatabase
from itl_env.errors import DatabaseError
from itl_env.facts import people

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
