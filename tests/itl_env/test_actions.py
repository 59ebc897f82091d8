"""From text to actions: every text is some action, and what experts write is understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itl_env.actions import Answer, Lookup, ParseError, Query, parse_lookup, parse_turn
from itl_env.dialogue import DIALECTS, STYLES, call_text, lookup_query, sql_query

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # surrogates and NUL too
PIECES = st.lists(
    st.sampled_from(["```", "sql", "\n", "FIND", " FOR ", "birth_date", "SELECT", " ", "Ann", "é"])
).map("".join)
NAMES = st.text(max_size=30).filter(
    lambda name: name and name == name.strip() and "\n" not in name and "\0" not in name
)


@given(ANY_TEXT | PIECES, st.sampled_from(DIALECTS), st.integers(1, 40))
def test_no_text_raises(text, dialect, max_length):
    action = parse_turn(text, dialect, max_length)
    assert isinstance(action, Query | Answer | ParseError)
    if isinstance(action, ParseError):
        assert action.code
        assert action.message
    else:
        assert action.text.strip() in text
        assert len(text) <= max_length


@given(ANY_TEXT | PIECES)
def test_no_query_raises(text):
    assert isinstance(parse_lookup(text), Lookup | ParseError)


@given(NAMES, st.sampled_from(["birth_date", "shoe size", "größe"]))
def test_a_lookup_is_read_back(name, attribute):
    assert parse_lookup(lookup_query(attribute, name)) == Lookup(attribute, name)


@given(NAMES.filter(lambda name: "```" not in name), st.sampled_from(STYLES))
def test_a_call_is_read_back_in_every_style_and_dialect(name, style):
    for dialect, query in (
        ("lookup", lookup_query("birth_date", name)),
        ("sql", sql_query("birth_date", name, "people", "name")),
    ):
        assert parse_turn(call_text(query, style), dialect, 10_000) == Query(query)


@pytest.mark.parametrize(
    ("text", "dialect", "action"),
    [
        (" Paris \n", "lookup", Answer("Paris")),
        ("FIND x FOR y", "lookup", Query("FIND x FOR y")),
        ("FIND x FOR y", "sql", Answer("FIND x FOR y")),
        ("select 1", "sql", Query("select 1")),
        ("WITH t AS (SELECT 1) SELECT * FROM t", "sql", Query),
        ("select 1", "lookup", Answer("select 1")),
        ("I will FIND it", "lookup", Answer("I will FIND it")),
        ("So:\n```sql\nFIND x FOR y\n```", "lookup", Query("FIND x FOR y")),
        ("```\nSELECT 1\n```\n\n", "sql", Query("SELECT 1")),
    ],
)
def test_turns_are_read_as_meant(text, dialect, action):
    parsed = parse_turn(text, dialect, 1000)
    assert parsed == action if isinstance(action, tuple) else isinstance(parsed, action)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("x" * 101, "too_long"),
        ("a\0b", "invalid_text"),
        ("a\udc80b", "invalid_text"),
        ("```sql\nFIND x FOR y", "malformed"),
        ("```sql\nFIND x FOR y\n``` and more", "malformed"),
        ("```python\nprint()\n```", "malformed"),
        ("```sql\n\n```", "malformed"),
        ("```FIND x FOR y```", "malformed"),
        ("```sql\nA\n```\n```sql\nB\n```", "malformed"),
    ],
)
def test_what_cannot_be_read_has_a_code(text, code):
    parsed = parse_turn(text, "lookup", 100)
    assert isinstance(parsed, ParseError)
    assert parsed.code == code


def test_an_attribute_ends_at_the_first_for():
    assert parse_lookup("FIND a FOR b FOR c") == Lookup("a", "b FOR c")
