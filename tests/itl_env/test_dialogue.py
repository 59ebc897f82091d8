"""Phrasings: what is said about a fact can be read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itl_env import ATTRIBUTES, ConfigError
from itl_env.dialogue import (
    PHRASINGS,
    Phrasing,
    phrasing,
    phrasings,
    sql_query,
    statement,
    with_article,
)

WORDS = st.text(min_size=1, max_size=20)
ALL_PHRASINGS = st.sampled_from(
    [
        *PHRASINGS.values(),
        phrasing("shoe_size"),
        phrasing("{odd}"),
        Phrasing("{name}?", "{name}{value}"),
    ]
)


@given(ALL_PHRASINGS, WORDS, WORDS)
def test_the_stated_value_is_read_back(words, name, value):
    assert words.value_in(words.state(name, value), name) == value


@given(ALL_PHRASINGS, WORDS)
def test_the_asked_name_is_read_back(words, name):
    assert words.name_in(words.ask(name)) == name


@given(ALL_PHRASINGS, st.text(), WORDS)
def test_reading_never_raises_and_gives_some_part_of_the_text(words, text, name):
    assert words.value_in(text, name) in text
    found = words.name_in(text)
    assert found is None or words.ask(found) == text


def test_a_statement_about_somebody_else_says_nothing():
    said = statement("birth_place", "Ann Lee", "Rome")
    assert phrasing("birth_place").value_in(said, "Ann Le") == said
    assert phrasing("birth_place").value_in(said, "Bob Lee") == said


@pytest.mark.parametrize("article", ["a", "an"])
def test_either_article_is_accepted(article):
    for noun in ("actor", "baker"):
        said = f"Ann works as {article} {noun}."
        assert phrasing("occupation").value_in(said, "Ann") == noun


def test_the_final_full_stop_may_be_missing():
    assert phrasing("birth_place").value_in("Ann was born in Rome", "Ann") == "Rome"
    assert phrasing("occupation").value_in("Ann works as an actor", "Ann") == "actor"


def test_articles_go_by_the_first_letter():
    assert [with_article(noun) for noun in ("actor", "Ox", "baker", "")] == [
        "an actor",
        "an Ox",
        "a baker",
        "a ",
    ]


def test_the_fact_world_has_the_published_wording():
    said = {attribute: phrasing(attribute) for attribute in ATTRIBUTES}
    assert {words.ask("N") for words in said.values()} == {
        "When was N born?",
        "Where was N born?",
        "Where does N live?",
        "What is N's occupation?",
    }
    assert said["occupation"].state("N", "actor") == "N works as an actor."


def test_unknown_attributes_are_phrased_neutrally():
    words = phrasing("shoe_{size}")
    assert words.ask("Ann") == "What is the shoe {size} of Ann?"
    assert words.state("Ann", "38") == "The shoe {size} of Ann is 38."


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("?", "{name} {value}"),
        ("{name}{name}", "{name} {value}"),
        ("{name}", "{value} {name}"),
        ("{name}", "{name}"),
        ("{name", "{name} {value}"),
        ("{}", "{name} {value}"),
    ],
)
def test_templates_with_other_placeholders_are_refused(question, says):
    with pytest.raises(ConfigError):
        Phrasing(question, says)


def test_own_phrasings_must_fit_the_attributes():
    own = {"question": "Job of {name}?", "statement": "{name}: {value}"}
    chosen = phrasings(("occupation", "birth_date"), {"occupation": own})
    assert chosen["occupation"].ask("Ann") == "Job of Ann?"
    assert chosen["birth_date"] == phrasing("birth_date")
    for wrong in (
        {"shoe_size": own},
        {"occupation": {"question": "Job of {name}?"}},
        {"occupation": own, "birth_date": own},
    ):
        with pytest.raises(ConfigError):
            phrasings(("occupation", "birth_date"), wrong)


def test_sql_quotes_what_must_be_quoted():
    assert sql_query("birth_date", "O'Hara", "people", "name") == (
        "SELECT birth_date FROM people WHERE name = 'O''Hara'"
    )
    assert sql_query('shoe "size"', "Ann", "order", "First Name") == (
        'SELECT "shoe ""size""" FROM "order" WHERE "First Name" = \'Ann\''
    )
