"""A person who plays sees what an agent sees, and leaves when they like."""

from collections.abc import Callable

import pytest

from benchmarks.play import facts_in_random_order, play
from itl_env import FactDatabase, RecallTask


def task(world: str, max_queries: int = 1) -> RecallTask:
    return RecallTask(FactDatabase(world), max_queries=max_queries)


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    remaining = iter(lines)

    def read() -> str:
        line = next(remaining, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_a_query_gets_a_reply_and_the_right_answer_a_point(world: str) -> None:
    t = task(world)
    fact = next(facts_in_random_order(t, 5))
    said: list[str] = []
    lines = typed(t.query(fact.attribute, fact.name), "", t.statement(fact))
    assert play(t, seed=5, n=1, read=lines, say=said.append) == (1, 1)
    assert f"\n{t.question(fact)}" in said
    assert f"database: {fact.value}" in said
    assert any("reward 1 (right); score 1/1" in line for line in said)


def test_a_wrong_answer_is_told_the_right_one(world: str) -> None:
    t = task(world, max_queries=0)
    fact = next(facts_in_random_order(t, 0))
    said: list[str] = []
    assert play(t, n=1, read=typed("no idea"), say=said.append) == (1, 0)
    assert any(f"wrong, it is {fact.value}" in line for line in said)


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt])
def test_leaving_keeps_the_score(world: str, leaving: type[BaseException]) -> None:
    t = task(world)
    fact = next(facts_in_random_order(t, 0))
    said: list[str] = []
    assert play(t, read=typed(fact.value, leaving), say=said.append) == (1, 1)
    assert said[-1] == "You answered 1 of 1 right."


@pytest.mark.parametrize("line", ["FIND", "```", "SELECT 1; DROP TABLE people", "\0", "\udc80"])
def test_nothing_a_person_types_stops_the_game(world: str, line: str) -> None:
    said: list[str] = []
    asked, right = play(task(world), n=1, read=typed(*[line] * 3), say=said.append)
    assert (asked, right) == (1, 0)


def test_every_fact_is_asked_once_in_an_order_of_the_seed(world: str) -> None:
    t = RecallTask(FactDatabase(world), keys=slice(10))
    first, second = (list(facts_in_random_order(t, seed)) for seed in (1, 2))
    assert sorted(first) == sorted(second) == sorted(t.facts())
    assert first != second
    assert first == list(facts_in_random_order(t, 1))
