"""Trivia: questions as names, answers with aliases."""

import json
from pathlib import Path

import gymnasium
import pytest

from itl_agents import ExpertAgent, rollout
from itl_env import Answer, FactDatabase, Query
from itl_env.episode import read_episodes, write_episodes
from itl_env.errors import ConfigError, EnvironmentFailure, ITLError
from itl_env.rubric import normalise_trivia
from itl_env.trivia import (
    PHRASING,
    SAMPLE,
    create_trivia,
    hub_trivia,
    of_hub,
    read_trivia,
    trivia,
    trivia_task,
)

HEXAGON = "How many sides has a hexagon?"


@pytest.fixture
def quiz(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'trivia.db'}"
    assert create_trivia(url, read_trivia(SAMPLE)) == 24
    return url


def reward(quiz: str, question: str, *turns: str) -> float:
    task = trivia_task(quiz)
    (state,) = task.start([task.fact_about(question, "answer")])
    assert state.messages[0].content == question
    for turn in turns:
        (reply,) = task.advance([state], [task.parse(turn)])
        state = reply.state
    return reply.reward


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Six", 1.0), ("six.", 1.0), ("6", 1.0), ("The six sides!", 1.0), ("seven", 0.0),
        ("sixty", 0.0), ("", 0.0), ("six or seven", 0.0),
    ],
)  # fmt: skip
def test_an_alias_is_as_right_as_the_answer(quiz: str, answer: str, right: float) -> None:
    assert reward(quiz, HEXAGON, f"FIND answer FOR {HEXAGON}", answer) == right


def test_a_question_is_looked_up_by_its_words(quiz: str) -> None:
    task = trivia_task(quiz)
    (state,) = task.start([task.fact_about(HEXAGON, "answer")])
    (reply,) = task.advance([state], [Query(f"FIND answer FOR {HEXAGON}")])
    assert reply.observation == "Six"
    (over,) = task.advance([reply.state], [Answer("6")])
    assert over.reward == 1.0


def test_the_expert_plays_it_and_its_episodes_keep_the_aliases(quiz: str, tmp_path: Path) -> None:
    for max_queries in (0, 1):
        task = trivia_task(quiz, max_queries=max_queries)
        episodes = list(rollout(ExpertAgent(task), task, task.facts()))
        assert len(episodes) == task.n_facts == 24
        assert all(episode.reward == 1.0 for episode in episodes)
        assert episodes[5].messages[-1].content == "Six"
    write_episodes(episodes, tmp_path / "episodes.jsonl")
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == episodes
    assert episodes[5].aliases == ("6", "six sides")


def test_an_exact_rubric_knows_aliases_too(quiz: str) -> None:
    task = trivia_task(quiz, rubric="exact")
    (state,) = task.start([task.fact_about(HEXAGON, "answer")])
    assert [
        task.advance([state], [Answer(answer)])[0].reward for answer in ("6", "SIX.", "the six")
    ] == [1.0, 1.0, 0.0]


def test_it_is_a_gymnasium_environment(quiz: str) -> None:
    env = gymnasium.make(
        "itl_env:ITL/FactRecall-v0", database=quiz, table="questions", key="question",
        aliases="aliases", rubric="trivia", phrasings=PHRASING,
    )  # fmt: skip
    question, info = env.reset(options={"fact": [HEXAGON, "answer"]})
    assert (question, info["attribute"]) == (HEXAGON, "answer")
    _, earned, *_ = env.step({"kind": 1, "text": "6"})
    assert earned == 1.0
    env.close()


def test_answers_are_compared_as_triviaqa_does() -> None:
    assert normalise_trivia("  The  Bard, of Avon! ") == "bard of avon"
    assert normalise_trivia("Anne") == "anne", "only whole words are articles"
    assert normalise_trivia("don't") == normalise_trivia("don t")


def test_the_hubs_rows_are_read_and_doubles_dropped(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": {"value": "A", "aliases": ["A", "B"], "normalized": "a"}}
    assert of_hub(row) == trivia("Q?", "A", ["B"])
    assert json.loads(of_hub(row).aliases) == ["B"]
    url = f"sqlite:///{tmp_path / 'one.db'}"
    assert create_trivia(url, [of_hub(row)] * 3) == 1


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ITLError, match=r"the hub: no route to the hub; a file of questions"):
        next(hub_trivia())


def test_one_alias_may_stand_alone_and_any_character_in_a_question(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"question": "Where\u2028is it?", "answer": "USA", "aliases": "America"}\n')
    (found,) = read_trivia(file)
    assert found == trivia("Where\u2028is it?", "USA", ["America"])
    assert json.loads(found.aliases) == ["America"]


def test_what_is_no_trivia_is_refused(tmp_path: Path, quiz: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Q?", "answer": "A"}\n\n{"question": "Q?"}\n')
    with pytest.raises(ITLError, match=r"bad.jsonl, line 3 is no question"):
        list(read_trivia(bad))
    with pytest.raises(ITLError, match="Cannot read questions"):
        list(read_trivia(tmp_path / "none.jsonl"))
    bad.write_text('{"question": "Q?", "answer": 6}')
    with pytest.raises(ITLError, match=r"bad.jsonl, line 1 is no question"):
        list(read_trivia(bad))
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ITLError, match="it is no text in UTF-8"):
        list(read_trivia(bad))
    with pytest.raises(ConfigError, match="aliases is the trivia task's own"):
        trivia_task(quiz, aliases="x")
    url = f"sqlite:///{tmp_path / 'odd.db'}"
    FactDatabase.create(
        url, [{"question": "Q?", "answer": "A", "aliases": "B"}], table="questions", key="question"
    ).close()
    task = trivia_task(url)
    with pytest.raises(EnvironmentFailure, match=r"aliases of 'Q\?' are not a JSON list"):
        task.start(list(task.facts()))
