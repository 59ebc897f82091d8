"""Files of samples: what they hold comes back, and what does not fit is named."""

import json

import pytest

from itl_env import ConfigError, Sample, read_samples, write_samples
from itl_env.generated import generate
from itl_env.samples import CATEGORIES, Step

ROW = {
    "id": "sum-1",
    "source": "mine",
    "category": "calculator",
    "tool_needed": True,
    "tool": "calculator",
    "tool_args": {"expression": "2 + 3"},
    "prompt": "What is 2 plus 3?",
    "expected_answer": "5",
}


def test_samples_come_back_from_a_file(tmp_path):
    every = ("calculator", "python_exec", "no_tool", "multi_turn")
    samples = list(generate(40, 3, categories=every, level=3))
    samples.append(samples[0]._replace(id="other", tolerance=0.5, metadata={"mine": [1]}))
    assert write_samples(samples, tmp_path / "s.jsonl") == 41
    assert list(read_samples(tmp_path / "s.jsonl")) == samples


@pytest.mark.parametrize("array", [True, False])
def test_an_array_serves_as_well_as_lines(tmp_path, array):
    rows = [ROW, {**ROW, "id": "sum-2"}]
    text = json.dumps(rows, indent=1) if array else "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "s.json").write_text("\ufeff" + text, encoding="utf-8")
    first, second = read_samples(tmp_path / "s.json")
    assert first == Sample(
        "sum-1", "mine", "calculator", "What is 2 plus 3?",
        (Step("calculator", {"expression": "2 + 3"}),), "5", "number",
    )  # fmt: skip
    assert second.id == "sum-2"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": None}, "field 'id' must be text, not null"),
        ({"id": " "}, "field 'id' is empty"),
        ({"prompt": ["a"]}, "field 'prompt' must be text, not an array"),
        ({"prompt": "\ud800"}, "field 'prompt' holds a lone surrogate"),
        ({"metadata": {"note": ["\ud800"]}}, "field 'metadata' holds a lone surrogate"),
        ({"expected_answer": "a\0"}, "field 'expected_answer' holds a NUL character"),
        ({"expected_answer": 5}, "field 'expected_answer' must be text, not a number"),
        ({"category": "sums"}, "field 'category' is 'sums'; it must be " + ", ".join(CATEGORIES)),
        ({"tool_needed": "yes"}, "field 'tool_needed' must be true or false, not text"),
        ({"tool_needed": False}, "field 'tool_needed' is false, but there is a tool"),
        ({"tool": None}, "field 'tool' must name a tool, not None"),
        ({"tool_args": {"expression": 5}}, "field 'tool_args' must be an object whose values are"),
        ({"tool_args": "2 + 3"}, "field 'tool_args' must be an object whose values are"),
        ({"metadata": 3}, "field 'metadata' must be an object, not a number"),
        ({"metadata": {"answer_type": "date"}}, "field 'metadata.answer_type' is 'date'"),
        ({"metadata": {"tolerance": -1}}, "field 'metadata.tolerance' is -1"),
        ({"metadata": {"tolerance": 10**400}}, "field 'metadata.tolerance' is too large"),
        ({"metadata": {"tolerance": True}}, "field 'metadata.tolerance' must be a number"),
        ({"metadata": {"steps": []}}, "field 'metadata.steps' must be a list of calls"),
        ({"metadata": {"steps": ["x"]}}, "field 'metadata.steps' must name a tool"),
        (
            {"metadata": {"steps": [{"tool": "calculator", "args": {"expression": "1"}}]}},
            "field 'metadata.steps' begins with another call than 'tool_args'",
        ),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_line(tmp_path, change, told):
    (tmp_path / "s.jsonl").write_text(
        f"{json.dumps({**ROW, 'id': '0'})}\n{json.dumps(ROW | change)}"
    )
    with pytest.raises(ConfigError) as caught:
        list(read_samples(tmp_path / "s.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path / 's.jsonl'}, line 2: {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no samples"),
        ("nonsense", "line 1: it is not JSON"),
        ('{"id": ' + "[" * 100_000, "line 1: it is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        ("[1, 2", "is not JSON"),
        ("[1]", "item 1: it is no JSON object but a number"),
        ("5", "line 1: it is no JSON object but a number"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "line 2: field 'id' is 'sum-1', as that of"),
        (json.dumps({k: v for k, v in ROW.items() if k != "prompt"}), "'prompt' is missing"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, told):
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=told):
        list(read_samples(tmp_path / "s.jsonl"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "s.jsonl").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 0"):
        list(read_samples(tmp_path / "s.jsonl"))
    with pytest.raises(ConfigError, match=r"Cannot read .*none"):
        list(read_samples(tmp_path / "none.jsonl"))
