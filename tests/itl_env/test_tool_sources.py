"""Rows that become samples of tool calling, and rows that are refused."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_env import FactDatabase
from itl_env.calculator import calculate, number_text
from itl_env.errors import ConfigError, ITLError
from itl_env.samples import Sample, Step
from itl_env.tool_rows import Rows, hub_rows, read_rows
from itl_env.tool_sources import (
    FIXTURE,
    Refusal,
    gsm8k_samples,
    instruction_samples,
    python_samples,
    verify,
)
from itl_env.tools import Calculator, Find, Python, ToolResult


@pytest.fixture(scope="module")
def python() -> Iterator[Python]:
    tool = Python()
    yield tool
    tool.close()


def solved(solution: str) -> Sample | Refusal:
    """What becomes of a row of GSM8K with that solution."""
    rows = Rows("rows", [{"question": "How many?", "answer": solution}])
    (found,) = gsm8k_samples(rows)
    return found


def expressions(sample: Sample | Refusal) -> list[str]:
    assert isinstance(sample, Sample), sample
    return [step.args["expression"] for step in sample.steps]


# -- GSM8K -----------------------------------------------------------------------------------------


def test_one_mark_is_a_calculator_sample_and_several_take_several_turns() -> None:
    one = solved("It is 3*4=<<3*4=12>>12.\n#### 12")
    assert isinstance(one, Sample)
    assert (one.id, one.category, one.answer_type) == ("gsm8k-1", "calculator", "number")
    assert one.steps == (Step("calculator", {"expression": "3*4"}),)
    two = solved("First <<3*4=12>>12, then <<12+.5=12.5>>12.5.\n#### 12.5")
    assert isinstance(two, Sample)
    assert (two.category, two.expected_answer) == ("multi_turn", "12.5")
    assert expressions(two) == ["3*4", "12+.5"]


@pytest.mark.parametrize(
    ("mark", "answer", "expression"),
    [
        ("$5*3=$15", "15", "5*3"),
        ("1,200+5=1,205", "$1,205", "1200+5"),
        (" 3 x 4 = 12 ", "12", "3*4"),
        ("(2+1)x4=12", "12.0", "(2+1)*4"),
        ("8÷2=4", "4", "8/2"),
        ("20%*50=10", "10", "(20/100)*50"),
        ("50*(20%)=10", "10", "50*((20/100))"),
        ("3/4=.75", "0.75", "3/4"),
        ("2/4=1/2", "0.5", "2/4"),
        ("3-5=-2", "-2", "3-5"),
    ],
)
def test_arithmetic_as_people_write_it_is_read(mark: str, answer: str, expression: str) -> None:
    sample = solved(f"<<{mark}>>\n#### {answer}")
    assert expressions(sample) == [expression]
    assert isinstance(sample, Sample)
    assert verify(sample, [Calculator()]) is None


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("3*4=12\n#### 12", "no_marks"),
        ("<<3*4=12>>12", "bad_answer"),
        ("<<3*4=12>>12\n#### a dozen", "bad_answer"),
        ("<<3*4=13>>13\n#### 13", "wrong_value"),
        ("<<10/3=3.33>>3.33\n#### 3.33", "wrong_value"),
        ("<<2000000/1=2000001>>2000001\n#### 2000001", "wrong_value"),
        ("<<2000000/1=2000000>>2000000\n#### 2000001", "other_answer"),
        ("<<3*4=13>>13 <<6+6=12>>12\n#### 12", "wrong_value"),
        ("<<3*4=12>>12\n#### 24", "other_answer"),
        ("<<3*4=12>>12 <<24=24>>24\n#### 24", "other_answer"),
        ("<<12=12>>12\n#### 12", "constant"),
        ("<<12>>12\n#### 12", "bad_mark"),
        ("<<3*4=12=12>>12\n#### 12", "bad_mark"),
        ("<<3*n=12>>12\n#### 12", "bad_mark"),
        ("<<4/0=0>>0\n#### 0", "bad_mark"),
        ("<<__import__('os')=12>>12\n#### 12", "bad_mark"),
        ("<<7%-3=-2>>\n#### -2", "ambiguous_mark"),
        ("<<10%3=1>>\n#### 1", "ambiguous_mark"),
        ("<<1,5*2=3>>\n#### 3", "ambiguous_mark"),
        ("<<max(1,200)=200>>\n#### 200", "bad_mark"),
    ],
)
def test_a_solution_that_does_not_hold_is_refused(solution: str, reason: str) -> None:
    found = solved(solution)
    assert isinstance(found, Refusal)
    assert (found.where, found.reason) == ("rows, row 1", reason)
    assert found.message.endswith(".")


def test_marks_that_compute_nothing_are_left_out() -> None:
    sample = solved("<<6=6>>6 cats, <<6*2=12>>12 dogs\n#### 12")
    assert expressions(sample) == ["6*2"]


def test_rows_of_another_shape_are_refused_one_by_one() -> None:
    good = {"question": "How many?", "answer": "<<1+1=2>>2\n#### 2"}
    values: list[Any] = [good, 7, {}, {**good, "question": None}, {**good, "question": "a\0"}, good]
    found = list(gsm8k_samples(Rows("f", values)))
    assert [isinstance(each, Sample) for each in found] == [True, *[False] * 4, True]
    assert {each.reason for each in found if isinstance(each, Refusal)} == {"bad_row"}


numbers = st.integers(1, 99)
operations = st.lists(st.tuples(st.sampled_from("+-*/"), numbers), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(start=numbers, chain=operations, off=st.integers(1, 5), where=st.integers(0, 4))
def test_true_chains_are_kept_and_false_ones_refused(
    start: int, chain: list[tuple[str, int]], off: int, where: int
) -> None:
    shown, marks = str(start), []
    for operator, operand in chain:
        expression = f"{shown}{operator}{operand}"
        shown = number_text(calculate(expression))
        marks.append((expression, shown))
    written = [f"<<{expression}={value}>>" for expression, value in marks]
    sample = solved(" ".join(written) + f"\n#### {shown}")
    if "e" in shown:  # not how an answer is written
        return
    assert expressions(sample) == [expression for expression, _ in marks]
    assert isinstance(sample, Sample)
    assert verify(sample, [Calculator()]) is None
    assert Sample.from_dict(json.loads(json.dumps(sample.to_dict()))) == sample
    place = where % len(marks)
    expression, value = marks[place]
    # Off by more than the tolerance, which is relative.
    wrong = float(value) + off * max(1, abs(float(value)))
    written[place] = f"<<{expression}={wrong}>>"
    assert isinstance(solved(" ".join(written) + f"\n#### {shown}"), Refusal)


def test_most_of_the_real_gsm8k_is_kept() -> None:
    file = os.environ.get("ITL_TEST_GSM8K", "")
    if not file:  # which no package index has, so that this may be skipped anywhere
        pytest.skip("ITL_TEST_GSM8K does not name a file of GSM8K's training rows")
    rows = read_rows(file)
    found = list(gsm8k_samples(rows))
    kept = [each for each in found if isinstance(each, Sample)]
    assert len(kept) > 0.85 * len(rows)
    refused = Counter(each.reason for each in found if isinstance(each, Refusal))
    assert set(refused) <= {"no_marks", "other_answer", "constant", "wrong_value", "bad_mark"}
    assert all(verify(sample, [Calculator()]) is None for sample in kept[::10])


# -- code ------------------------------------------------------------------------------------------


def coded(tool: Any, bounds: Mapping[str, int] | None = None, **row: Any) -> Sample | Refusal:
    (found,) = python_samples(Rows("rows", [row]), tool, **(bounds or {}))
    return found


def test_what_code_prints_is_what_is_expected(python: Python) -> None:
    hub = {"instruction": "Add the numbers.", "input": "3, 4", "prompt": "it holds the answer"}
    sample = coded(python, **hub, output="print(3 + 4)\nprint()")
    assert isinstance(sample, Sample)
    assert (sample.prompt, sample.expected_answer) == ("Add the numbers.\n3, 4", "7\n")
    assert sample.steps == (Step("python", {"code": "print(3 + 4)\nprint()"}),)
    assert verify(sample, [python]) is None
    told = coded(python, prompt="Square 5.", code="print(5 ** 2)", output="25\n")
    assert isinstance(told, Sample)
    assert told.category == "python_exec"
    assert told.expected_answer == "25"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"output": "def f():\n    return 1"}, "no_output"),
        ({"output": "print(1"}, "malformed"),
        ({"output": "print(1 / 0)"}, "exception"),
        ({"output": "print(input())"}, None),
        ({"output": "print('a' * 501)"}, "long_output"),
        ({"output": "print(1)" + " " * 2000}, "long_code"),
        ({"code": "print(2 + 2)", "output": "5"}, "wrong_output"),
        ({"output": "import random\nprint(random.random())"}, "not_deterministic"),
        ({"output": "import os, time\nprint(time.time())"}, "not_deterministic"),
        ({"output": "from datetime import date\nprint(date.today())"}, "not_deterministic"),
        ({"output": None}, "bad_row"),
        ({"instruction": " ", "output": "print(1 + 1)"}, "empty_prompt"),
    ],
)
def test_code_without_a_certain_output_is_refused(
    python: Python, row: dict[str, Any], reason: str | None
) -> None:
    found = coded(python, **{"instruction": "Do it.", **row})
    assert isinstance(found, Refusal)
    assert reason in (None, found.reason)


def test_code_whose_second_run_differs_is_refused() -> None:
    class Ticking:
        """A tool that replies with how often it has run."""

        name, parameters, description = "python", ("code",), ""
        n = 0

        def run(self, calls: Sequence[Mapping[str, str]]) -> list[ToolResult]:
            self.n += len(calls)
            return [ToolResult(str(self.n - len(calls) + place)) for place in range(len(calls))]

        def close(self) -> None:
            pass

    found = coded(Ticking(), prompt="Tick.", code="tick()")
    assert isinstance(found, Refusal)
    assert found.reason == "not_deterministic"


def test_the_bounds_of_code_can_be_set(python: Python) -> None:
    row = {"prompt": "Count.", "code": "print(10 ** 9)"}
    for bound, reason in (("max_code", "long_code"), ("max_output", "long_output")):
        found = coded(python, {bound: 5}, **row)
        assert isinstance(found, Refusal)
        assert found.reason == reason


# -- instructions ----------------------------------------------------------------------------------


def test_the_fixture_is_kept_whole_and_asks_nothing_twice() -> None:
    found = list(instruction_samples(read_rows(FIXTURE)))
    samples = [each for each in found if isinstance(each, Sample)]
    assert len(samples) == len(found) == 40
    assert len({sample.prompt for sample in samples}) == 40
    assert all(verify(sample, []) is None for sample in samples)
    assert {sample.category for sample in samples} == {"no_tool"}


def test_instructions_without_a_prompt_or_an_answer_of_fit_length_are_refused() -> None:
    rows: list[Any] = [
        {"instruction": "Say yes.", "input": "<noinput>", "output": " Yes. "},
        {"instruction": "Say", "input": "it", "output": "it"},
        {"instruction": "", "input": "x", "output": "y"},
        {"instruction": "x", "output": " "},
        {"instruction": "x", "output": "<nooutput>"},
        {"instruction": "x" * 11, "output": "y"},
        {"instruction": "x", "output": "y" * 6},
        {"instruction": "x", "output": 6},
    ]
    first, second, *refused = instruction_samples(Rows("f", rows), max_prompt=10, max_answer=5)
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.prompt, first.expected_answer) == ("Say yes.", "Yes.")
    assert second.prompt == "Say\nit"
    assert [each.reason for each in refused if isinstance(each, Refusal)] == [
        "empty_prompt", "empty_answer", "empty_answer", "long_prompt", "long_answer", "bad_row",
    ]  # fmt: skip


# -- verification ----------------------------------------------------------------------------------

SUM = Sample(
    id="s",
    source="mine",
    category="calculator",
    prompt="What is 2 plus 3?",
    steps=(Step("calculator", {"expression": "2 + 3"}),),
    expected_answer="5",
    answer_type="number",
)


def call(tool: str, **args: str) -> Step:
    return Step(tool, args)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expected_answer": "5.0"}, None),
        ({"expected_answer": "6"}, "wrong_result"),
        ({"expected_answer": "5.1", "tolerance": 0.1}, None),
        ({"id": " "}, "empty_id"),
        ({"prompt": "\n"}, "empty_prompt"),
        ({"expected_answer": " . ", "answer_type": "text"}, "empty_answer"),
        ({"steps": (call("calculator", expression="5"),)}, "constant"),
        ({"steps": (call("calculator", expression="2 +"),)}, "malformed"),
        ({"steps": (call("calculator", code="2 + 3"),)}, "bad_arguments"),
        ({"steps": ()}, "category"),
        ({"category": "no_tool"}, "category"),
        ({"category": "multi_turn"}, "category"),
        ({"category": "no_tool", "steps": ()}, None),
        ({"category": "python_exec", "steps": (call("python", code="print(2 + 3)"),)}, None),
        ({"category": "python_exec", "steps": (call("python", code="print(5)"),)}, "constant"),
        ({"category": "python_exec", "steps": (call("python", code="2 + 3"),)}, "no_output"),
        ({"category": "python_exec", "steps": (call("python", code="print(x)"),)}, "exception"),
        ({"category": "mixed", "steps": (call("find", a="b"), SUM.steps[0])}, "unknown_tool"),
        (
            {"category": "multi_turn", "steps": (SUM.steps[0], call("calculator", expression="5"))},
            None,
        ),
        (
            {
                "category": "multi_turn",
                "steps": (call("calculator", expression="1/0"), SUM.steps[0]),
            },
            "division_by_zero",
        ),
    ],
)
def test_a_label_is_right_if_executing_it_gives_what_is_expected(
    python: Python, change: dict[str, Any], reason: str | None
) -> None:
    refusal = verify(SUM._replace(**change), [Calculator(), python], "here")
    assert (refusal and refusal.reason) == reason
    if refusal is not None:
        assert refusal.where == "here"
        assert refusal.message.endswith(".")


def test_calls_of_other_tools_are_verified_with_those_that_are_given(world: str) -> None:
    with FactDatabase(world) as database:
        name, attribute, value = database.fact(3, "birth_date")
        year = value[-4:]
        steps = (
            call("find", attribute=attribute, name=name),
            call("calculator", expression=f"2000 - {year}"),
        )
        age = SUM._replace(category="mixed", steps=steps, expected_answer=str(2000 - int(year)))
        assert verify(age, [Calculator(), Find(database)]) is None
        refusal = verify(age, [Calculator()])
        assert refusal is not None
        assert refusal == Refusal("s", "unknown_tool", refusal.message)


def test_a_question_of_nothing_is_refused() -> None:
    rows = Rows("rows", [{"question": " ", "answer": "<<3+4=7>>7\n#### 7"}])
    (found,) = gsm8k_samples(rows)
    assert found == Refusal("rows, row 1", "empty_prompt", "the question is empty.")


# -- raw rows --------------------------------------------------------------------------------------


def test_rows_are_read_from_each_kind_of_file(tmp_path: Path) -> None:
    import datasets

    values = [{"question": f"{n}?", "answer": "A\u2028b"} for n in range(5)]
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n\n" for value in values)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    datasets.Dataset.from_list(values).to_parquet(str(tmp_path / "a.parquet"))
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        rows = read_rows(tmp_path / name)
        assert [row.values for row in rows] == values
        assert [row.where for row in rows][4] == f"{tmp_path / name}, row 5"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, data, said in (
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "a.jsonl, line 2: it is not JSON"),
        ("b.json", b"[1, ", "b.json: it is not JSON"),
        ("c.jsonl", b"\xff", "c.jsonl is not UTF-8 at byte 0"),
        ("d.jsonl.gz", b"{}", "Cannot read .*d.jsonl.gz: Not a gzipped file"),
        (
            "e.jsonl.gz",
            gzip.compress(b"{}" * 99, mtime=0)[:-9],
            "Cannot read .*e.jsonl.gz",
        ),
        ("f.parquet", b"no", "Cannot read rows from .*f.parquet"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=said):
            read_rows(tmp_path / name)
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(ConfigError, match=f"{name}: No such file"):
            read_rows(tmp_path / name)


def test_the_seed_orders_rows_and_their_place_stays(tmp_path: Path) -> None:
    rows = Rows("f", list(range(100)))
    order = [row.values for row in rows.shuffled(3)]
    assert sorted(order) == list(range(100))
    assert order == [row.values for row in rows.shuffled(3)] != [*rows.shuffled(4)]
    assert all(row.place == row.values + 1 for row in rows.shuffled(3))


def test_hub_rows_come_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    # A repository is a folder with data files and a card that names its configurations.
    repository = tmp_path / "gsm8k"
    (repository / "main").mkdir(parents=True)
    row = {"question": "How many?", "answer": "<<1+1=2>>2\n#### 2"}
    (repository / "main" / "train.jsonl").write_text(json.dumps(row) + "\n")
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: main/train.jsonl\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = hub_rows("gsm8k", str(repository), "main")
    (sample,) = gsm8k_samples(rows.shuffled(0))
    assert isinstance(sample, Sample)
    assert sample.expected_answer == "2"
    with pytest.raises(ITLError, match=r"cannot be had from the hub: .*\(--gsm8k FILE\)"):
        hub_rows("gsm8k", str(repository), "nothing")
