"""Rewards: exactly right or not, after normalisation, never by substring."""

import pytest

from itl_env import Answer, ConfigError, Fact, FactDatabase, RecallTask, State, StopReason
from itl_env.rubric import Component, Rubric, is_exact, normalise, rubric_named


def over(gold, answer):
    return State(Fact("Ann Lee", "birth_date", gold), (), answer=answer)


def exact(gold, answer):
    return rubric_named("exact")(over(gold, answer)).total


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/5/1990", "21/5/1990"),
        ("21/5/1990", "1/5/1990"),
        ("Rome", "Rome, Italy"),
        ("Rome", "in Rome"),
        ("Rome", "Rome or Paris"),
        ("Rome", ""),
        ("Rome", None),
        ("Rome", "Ｒｏｍｅ"),
        ("Rome", "Rome.."),
    ],
)
def test_what_is_not_exactly_the_value_is_wrong(gold, answer):
    assert exact(gold, answer) == 0.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Rome", "Rome"),
        ("Rome", " rome.\n"),
        ("Rome", "ROME ."),
        ("St.", "St."),
        ("St.", "st"),
        ("Orléans", "Orle\u0301ans"),
        ("Straße", "STRASSE"),
    ],
)
def test_case_space_composition_and_a_full_stop_do_not_matter(gold, answer):
    assert exact(gold, answer) == 1.0
    assert normalise(gold) == normalise(answer)


def test_the_lenient_rubric_finds_the_value_anywhere():
    lenient = rubric_named("lenient")
    assert lenient(over("Rome", "It is Rome, I think")).total == 1.0
    assert lenient(over("Rome", "Paris")).total == 0.0
    assert lenient(over("Rome", None)).total == 0.0


def test_a_total_is_the_weighted_sum_of_its_parts():
    rubric = Rubric(
        (
            Component("exact", 1.0, is_exact),
            Component("queries", -0.25, lambda transcript: float(transcript.n_queries)),
        )
    )
    score = rubric(over("Rome", "Rome")._replace(n_queries=2))
    assert (score.total, score.parts) == (0.5, {"exact": 1.0, "queries": 2.0})


def test_an_unknown_rubric_is_refused():
    with pytest.raises(ConfigError, match="exact, trivia, lenient"):
        rubric_named("generous")


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("actor", 1.0),
        ("Ann Lee works as an actor.", 1.0),
        ("Ann Lee works as a actor.", 1.0),
        ("Ann Lee works as an ACTOR", 1.0),
        ("Bob Lee works as an actor.", 0.0),
        ("Ann Lee works as an actor. Or a baker.", 0.0),
        ("Ann Lee was born in actor.", 0.0),
    ],
)
def test_an_answer_is_the_value_or_the_statement_about_the_person(answer, reward):
    rows = [{"name": "Ann Lee", "occupation": "actor"}]
    task = RecallTask(FactDatabase.create("sqlite://", rows), max_queries=0)
    (reply,) = task.advance(task.start([task.fact(0)]), [Answer(answer)])
    assert (reply.reward, reply.state.stop_reason) == (reward, StopReason.ANSWERED)
