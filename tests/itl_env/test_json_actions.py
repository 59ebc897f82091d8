"""Turns of tool calling: which texts are a call, which an answer, and what is wrong with others."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_env.actions import (
    Final,
    ParseError,
    ToolCall,
    call_turn,
    final_turn,
    is_bare,
    parse_json_turn,
)

CALL = '{"tool": "calculator", "args": {"expression": "2 * 3"}}'


def parse(text):
    return parse_json_turn(text, 1000)


def test_both_forms_are_read():
    assert parse(CALL) == ToolCall("calculator", {"expression": "2 * 3"})
    assert parse('{"final": "six"}') == Final("six")


@pytest.mark.parametrize("around", ["Sure: {}", "{} ", "```json\n{}\n```", "{}<|im_end|>"])
def test_text_around_the_object_is_passed_over_but_noted(around):
    turn = around.replace("{}", CALL)
    assert parse(turn) == parse(CALL)
    assert is_bare(turn) == (not turn.replace(CALL, "").strip())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "no_json"),
        ("6", "no_json"),
        ("} {", "no_json"),
        ("{", "no_json"),
        ("{}", "wrong_form"),
        ("[1]", "no_json"),
        ("{'final': 'six'}", "invalid_json"),
        ('{"final": "six"', "no_json"),
        ('{"final": "a"} {"final": "b"}', "invalid_json"),
        ('{"final": "a", "final": "b"}', "invalid_json"),
        ('{"final": 6}', "wrong_form"),
        ('{"final": null}', "wrong_form"),
        ('{"final": "6", "tool": "calculator"}', "wrong_form"),
        ('{"tool": "calculator"}', "wrong_form"),
        ('{"tool": "calculator", "args": "2 * 3"}', "wrong_form"),
        ('{"tool": ["calculator"], "args": {}}', "wrong_form"),
        ('{"tool": "c", "args": {"x": NaN}}', "invalid_json"),
        ('{"tool": "c", "args": {"x": ' + "9" * 900 + "}}", None),
        ('{"tool": "c", "args": ' + '{"x": ' * 100 + "1" + "}" * 101, None),
        ("{" * 900 + "}" * 90, "invalid_json"),
        ('{"final": "\\u0000"}', "invalid_text"),
        ('{"tool": "c", "args": {"\\ud800": "x"}}', "invalid_text"),
        ('{"final": "\ud800"}', "invalid_text"),
        ('{"final": "' + "a" * 1000 + '"}', "too_long"),
    ],
)
def test_what_is_wrong_has_a_code(text, code):
    action = parse(text)
    assert (action.code if isinstance(action, ParseError) else None) == code


def test_nesting_and_numbers_beyond_all_measure_are_errors_too():
    deep = '{"tool": "c", "args": ' + "[" * 100_000 + "]" * 100_000 + "}"
    long = '{"tool": "c", "args": {"x": ' + "9" * 100_000 + "}}"
    assert [parse_json_turn(text, 10**6).code for text in (deep, long)] == ["invalid_json"] * 2


@given(st.text())
def test_no_text_raises(text):
    action = parse(text)
    assert isinstance(action, Final | ToolCall | ParseError)


@given(st.text(alphabet='{}[]":,\\u0dtrfinalsog \n', max_size=60))
@settings(max_examples=300)
def test_no_text_that_is_nearly_json_raises(text):
    assert isinstance(parse("{" + text + "}"), Final | ToolCall | ParseError)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


@given(WORDS)
def test_a_final_turn_reads_back(text):
    turn = final_turn(text)
    assert parse(turn) == Final(text)
    assert is_bare(turn)


@given(WORDS, st.dictionaries(WORDS, WORDS, max_size=3))
def test_a_call_reads_back(tool, args):
    turn = call_turn(tool, args)
    assert parse(turn) == ToolCall(tool, args)
    assert json.loads(turn) == {"tool": tool, "args": args}
