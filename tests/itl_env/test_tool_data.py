"""Data sets of tool calling: what they hold, how they are split, what is refused."""

import json
import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_env import FactDatabase, people, tool_data
from itl_env.errors import ConfigError
from itl_env.generated import ages
from itl_env.python_code import same_code, syntax_tree
from itl_env.samples import Sample, Step, load_samples, write_samples
from itl_env.tool_data import PUBLISHED, Mix, make_data
from itl_env.tool_sources import verify
from itl_env.tool_split import call_key, plain_prompt, split
from itl_env.tools import Calculator, Find, Python

SMALL = Mix(generated=120, categories=("calculator", "no_tool", "multi_turn"), seed=3)


def rows_file(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gsm8k_file(path: Path, n: int, n_bad: int = 0) -> str:
    """N rows like GSM8K's, of which the last `n_bad` have no mark."""
    rows = []
    for place in range(n):
        total = 7 * place + 100
        mark = f"<<{7 * place}+100={total}>>" if place < n - n_bad else ""
        rows.append({"question": f"What is item {place}?", "answer": f"{mark}\n#### {total}"})
    return rows_file(path, rows)


def summing(place: int, a: int, b: int, **change: Any) -> Sample:
    """A right sample of the user's own."""
    return Sample(
        id=f"own-{place}",
        source="mine",
        category="calculator",
        prompt=f"Number {place}: {a} and {b}?",
        steps=(Step("calculator", {"expression": f"{a} + {b}"}),),
        expected_answer=str(a + b),
        answer_type="number",
    )._replace(**change)


def parts(folder: Path) -> tuple[list[Sample], list[Sample]]:
    return load_samples(folder / "train.jsonl"), load_samples(folder / "validation.jsonl")


def test_a_source_without_a_good_row_says_what_is_wrong_with_the_first(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"q": 1}\n{"question": "How?", "answer": "none"}\n')
    mix = Mix(gsm8k=None, gsm8k_from=str(tmp_path / "q.jsonl"))
    with pytest.raises(ConfigError) as told:
        make_data(mix, tmp_path / "out")
    assert "no good row among 2 (refused: " in str(told.value)
    assert "q.jsonl, row " in str(told.value)


def test_what_a_level_cannot_give_is_said_before_all_has_been_tried(tmp_path):
    url = f"sqlite:///{tmp_path / 'few.db'}"
    FactDatabase.create(url, people(3, seed=0)).close()
    mix = Mix(generated=100_000, categories=("mixed",), database=url)
    with pytest.raises(ConfigError, match=r"has [\d,]+ good rows among [\d,]+, fewer than") as told:
        make_data(mix, tmp_path / "out")
    n_tried = int(re.search(r"among ([\d,]+)", str(told.value))[1].replace(",", ""))
    assert n_tried == 10_000  # of the million that might be


def test_a_data_set_is_a_function_of_its_mix(tmp_path: Path) -> None:
    for name, mix in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, seed=4))):
        make_data(mix, tmp_path / name)
    files = ("train.jsonl", "validation.jsonl", "report.json", "report.md")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == sorted(files)
    for file in files:
        first, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == again
        assert first != other


def test_each_category_is_generated_and_split_in_its_share(tmp_path: Path) -> None:
    report = make_data(SMALL, tmp_path / "data")
    train, validation = parts(tmp_path / "data")
    for part, n in ((train, 32), (validation, 8)):
        counts = Counter(sample.category for sample in part)
        assert counts == dict.fromkeys(SMALL.categories, n)
    assert (report.n_train, report.n_validation) == (96, 24)
    assert report.counts[("generated", "calculator")] == (32, 8)
    # The parts are mixed: the first samples are not all of one category.
    assert len({sample.category for sample in validation[:12]}) > 1


def test_every_sample_is_verified_and_none_asks_what_another_does(tmp_path: Path) -> None:
    mix = replace(SMALL, categories=("calculator", "python_exec", "no_tool"), instructions=None)
    make_data(mix, tmp_path / "data")
    train, validation = parts(tmp_path / "data")
    samples = train + validation
    python = Python()
    assert all(verify(sample, [Calculator(), python]) is None for sample in samples)
    python.close()
    assert len({plain_prompt(sample.prompt) for sample in samples}) == len(samples) == 160
    assert len({sample.id for sample in samples}) == 160


def test_the_published_preset_is_the_published_mix() -> None:
    assert (PUBLISHED.gsm8k, PUBLISHED.python, PUBLISHED.instructions) == (1600, 1600, 4800)
    assert (PUBLISHED.seed, PUBLISHED.validation, PUBLISHED.generated) == (42, 0.2, 0)
    places = (PUBLISHED.gsm8k_from, PUBLISHED.python_from, PUBLISHED.instructions_from)
    assert set(places) == {"hub"}


def test_a_source_with_too_little_is_an_error_or_a_warning_as_the_mix_says(
    tmp_path: Path,
) -> None:
    file = gsm8k_file(tmp_path / "g.jsonl", 30, 10)
    mix = Mix(gsm8k=25, gsm8k_from=file)
    said = r"gsm8k has 20 good rows among 30, fewer than the 25 wanted \(refused: no_marks 10\)"
    with pytest.raises(ConfigError, match=said):
        make_data(mix, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.warns(UserWarning, match=said):
        report = make_data(replace(mix, allow_fewer=True), tmp_path / "data")
    assert report.n_train + report.n_validation == 20
    assert len(report.notes) == 1
    bad = gsm8k_file(tmp_path / "bad.jsonl", 3, 3)
    with pytest.raises(ConfigError, match="gsm8k has no good row among 3"):
        make_data(Mix(gsm8k=2, gsm8k_from=bad, allow_fewer=True), tmp_path / "none")


def test_generated_prompts_that_run_out_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_data, "TRIES", 1)
    mix = Mix(generated=2000, categories=("no_tool",), allow_fewer=True)
    said = (
        r"generated no_tool has [\d,]+ good rows among 2,000, .*; take fewer, or a higher level\.$"
    )
    with pytest.raises(ConfigError, match=said):
        make_data(mix, tmp_path / "data")


def test_a_prompt_that_an_earlier_source_has_is_drawn_again(tmp_path: Path) -> None:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    own = [
        Sample(day, "mine", "no_tool", f"Which day comes after {day}?", (), days[place - 6])
        for place, day in enumerate(days)
    ]
    write_samples(own, tmp_path / "days.jsonl")
    files = (str(tmp_path / "days.jsonl"),)
    make_data(Mix(generated=90, categories=("no_tool",), files=files), tmp_path / "data")
    train, validation = parts(tmp_path / "data")
    asked = Counter(sample.source for sample in train + validation if "Which day" in sample.prompt)
    assert len(train + validation) == 97
    assert asked == {"mine": 7}


def test_only_as_many_rows_are_tried_as_are_needed_and_the_seed_chooses_them(
    tmp_path: Path,
) -> None:
    file = gsm8k_file(tmp_path / "g.jsonl", 200, 50)
    chosen = []
    for seed in (1, 2):
        mix = Mix(gsm8k=40, gsm8k_from=file, seed=seed)
        report = make_data(mix, tmp_path / str(seed))
        (tally,) = report.tallies
        assert (tally.available, tally.kept, tally.wanted) == (200, 40, 40)
        assert tally.tried == 40 + tally.refused.total() < 100
        train, validation = parts(tmp_path / str(seed))
        chosen.append({sample.id for sample in train + validation})
    assert chosen[0] != chosen[1]


def test_own_files_are_verified_and_what_is_wrong_is_told(tmp_path: Path) -> None:
    good = [summing(place, place, 50) for place in range(10)]
    bad = [
        summing(20, 1, 2, expected_answer="4"),
        summing(21, 1, 2, steps=(Step("calculator", {"expression": "3"}),)),
        summing(22, 1, 2, steps=(Step("find", {"name": "x"}),), category="mixed"),
        summing(23, 1, 50, prompt="Number 1:  1 and 50?"),
    ]
    write_samples(good + bad, tmp_path / "mine.jsonl")
    write_samples([summing(3, 70, 80)], tmp_path / "more.jsonl")
    files = (str(tmp_path / "mine.jsonl"), str(tmp_path / "more.jsonl"))
    with pytest.raises(ConfigError, match=r"more.jsonl has no good row among 1 .*duplicate_id 1"):
        make_data(Mix(files=files), tmp_path / "data")
    report = make_data(Mix(files=files[:1]), tmp_path / "data")
    assert report.counts == {("mine", "calculator"): (8, 2)}
    (tally,) = report.tallies
    assert tally.refused == dict.fromkeys(
        ("wrong_result", "constant", "category", "duplicate_prompt"), 1
    )
    shown = tally.examples["wrong_result"][0]
    assert shown.where == f"{files[0]}, sample 'own-20'"
    assert shown.message == "it comes to '3', not '4'."
    (tmp_path / "mine.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(ConfigError, match=r"mine.jsonl, line 1: field 'source' is missing"):
        make_data(Mix(files=files[:1]), tmp_path / "other")


def test_samples_that_look_up_are_verified_over_their_database(world: str, tmp_path: Path) -> None:
    with FactDatabase(world) as database:
        write_samples(ages(database, 20), tmp_path / "ages.jsonl")
        mix = Mix(files=(str(tmp_path / "ages.jsonl"),))
        with pytest.raises(ConfigError, match="unknown_tool 20"):
            make_data(mix, tmp_path / "data")
        report = make_data(mix, tmp_path / "data", tools=[Find(database)])
    assert report.n_train + report.n_validation >= 19


def test_the_report_counts_what_was_refused_with_examples(tmp_path: Path) -> None:
    rows = [
        {"question": "A?", "answer": "<<2*3=6>>\n#### 6"},
        *[{"question": f"{n}?", "answer": f"<<2*{n}=1>> a | b\n#### 1"} for n in range(9)],
    ]
    file = rows_file(tmp_path / "g.jsonl", rows)
    make_data(Mix(gsm8k=None, gsm8k_from=file), tmp_path / "data")
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    (source,) = report["sources"]
    assert (source["tried"], source["kept"], source["refused"]) == (10, 1, {"wrong_value": 9})
    assert len(source["examples"]["wrong_value"]) == 3
    assert report["samples"] == [
        {"source": "gsm8k", "category": "calculator", "train": 1, "validation": 0}
    ]
    assert report["settings"]["seed"] == 42
    assert report["versions"]["itl"]
    page = (tmp_path / "data" / "report.md").read_text()
    assert "| gsm8k | wrong_value | 9 |" in page
    assert source["examples"]["wrong_value"][0]["where"] in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_a_folder_is_written_again_by_the_same_mix_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_data(SMALL, folder)
    whole = (folder / "train.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="data holds data of other settings; name a new folder"):
        make_data(replace(SMALL, seed=9), folder)
    # What an interrupted command leaves: no report, and half of a hidden file.
    (folder / "report.json").unlink()
    (folder / ".train.jsonl.0a0a").write_text("{")
    (folder / "train.jsonl").write_text("")
    make_data(SMALL, folder)
    assert (folder / "train.jsonl").read_bytes() == whole
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"data holds other things, such as thesis.tex"):
        make_data(SMALL, folder)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        make_data(SMALL, folder / "thesis.tex")


def test_progress_grows_to_what_there_is_to_do(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    mix = replace(SMALL, generated=900, instructions=None)
    make_data(mix, tmp_path / "data", on_progress=lambda *how: told.append(how))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1] == (940, 940, "generated multi_turn")
    assert len(told) > 9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "The mix is empty"),
        ({"gsm8k": -1}, "gsm8k is -1"),
        ({"generated": 9, "validation": 1.0}, "validation is 1.0; it must be above 0 and below 1"),
        ({"generated": 9, "validation": 0}, "validation is 0; it must be above 0 and below 1"),
        ({"generated": 9, "validation": float("nan")}, "validation is nan"),
        ({"generated": 2}, "less than one for each of 3 categories"),
        ({"generated": 9, "categories": ("no_tool", "no_tool")}, "none twice"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Mix(**settings)


def test_what_is_not_generated_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no level 9"):
        make_data(replace(SMALL, level=9), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="'mixed' looks facts up; name a database"):
        replace(SMALL, categories=("mixed",))


def test_people_who_are_asked_about_are_not_trained_on(world: str, tmp_path: Path) -> None:
    mix = Mix(generated=120, categories=("mixed", "multi_turn"), database=world, seed=3)
    report = make_data(mix, tmp_path)
    assert (report.n_train, report.n_validation) == (96, 24)
    names = [
        {sample.steps[0].args["name"] for sample in load_samples(tmp_path / part)
         if sample.category == "mixed"}
        for part in ("train.jsonl", "validation.jsonl")
    ]  # fmt: skip
    assert len(names[1]) >= 6
    assert not names[0] & names[1]


# -- the split -------------------------------------------------------------------------------------

calls = st.tuples(st.integers(0, 30), st.sampled_from("+-*"), st.integers(0, 30)).map(
    lambda call: f"{call[0]} {call[1]} {call[2]}"
)


@st.composite
def many_samples(draw: st.DrawFn) -> list[Sample]:
    """Samples with none to three calls, some of which are shared."""
    expressions = draw(st.lists(st.lists(calls, max_size=3), max_size=60))
    return [
        summing(place, 1, 1, steps=tuple(Step("calculator", {"expression": e}) for e in each))
        for place, each in enumerate(expressions)
    ]


@settings(max_examples=100, deadline=None)
@given(samples=many_samples(), share=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_no_call_is_in_both_parts(samples: list[Sample], share: float, seed: int) -> None:
    aside = split(samples, share, seed)
    keys = [
        {call_key(step) for sample, is_aside in zip(samples, aside, strict=True)
         if is_aside == part for step in sample.steps}
        for part in (False, True)
    ]  # fmt: skip
    assert not keys[0] & keys[1]
    assert sum(aside) <= round(len(samples) * share)
    assert aside == split(samples, share, seed)


def test_samples_without_shared_calls_are_split_exactly() -> None:
    samples = [summing(place, place, 1000 + place) for place in range(103)]
    assert [sum(split(samples, share, 0)) for share in (0, 0.2, 0.5)] == [0, 21, 52]
    assert split(samples, 0.2, 0) != split(samples, 0.2, 1)


def test_a_call_in_another_order_is_the_same_call() -> None:
    keys = {
        call_key(Step("calculator", {"expression": expression}))
        for expression in ("2 + 30", "30+2", "(30 + 2)", "2.0 + 30", "2 + 3_0.", "2+3E1")
    }
    assert len(keys) == 1
    for other in ("2 - 30", "2 + 3", "20 + 30", "max(2, 30)"):
        assert call_key(Step("calculator", {"expression": other})) not in keys
    assert call_key(Step("calculator", {"expression": "1_000+1"})) == call_key(
        Step("calculator", {"expression": "1000 + 1"})
    )


@pytest.mark.parametrize(
    ("code", "other", "is_same"),
    [
        ("print(2*3)", "print(2 * 3)  # six", True),
        ("print('a')", 'print("a")\n', True),
        ("print(1+2)", "print(2+1)", False),
        ("print(", "print(", True),
        ("print(", "print( ", False),
    ],
)
def test_code_is_the_same_call_if_its_syntax_trees_are_equal(
    code: str, other: str, is_same: bool
) -> None:
    keys = [call_key(Step("python", {"code": each})) for each in (code, other)]
    assert (keys[0] == keys[1]) == is_same
    if syntax_tree(code):
        assert same_code(code, other) == is_same


def test_calls_that_hang_together_stay_in_training_with_a_warning(tmp_path: Path) -> None:
    chain = [
        summing(place, place, 100, steps=tuple(
            Step("calculator", {"expression": f"{place + more} + 100"}) for more in (1, 0)
        ), category="multi_turn")
        for place in range(20)
    ]  # fmt: skip
    write_samples(chain, tmp_path / "chain.jsonl")
    with pytest.warns(UserWarning, match="validation part has 0 samples, fewer than 4"):
        report = make_data(Mix(files=(str(tmp_path / "chain.jsonl"),)), tmp_path / "data")
    assert (report.n_train, report.n_validation) == (20, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_data(Mix(files=(str(tmp_path / "chain.jsonl"),), validation=0.01), tmp_path / "all")
