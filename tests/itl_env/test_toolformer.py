"""Calculator calls as text: what is asked, what is copied, and what of a text counts as a call."""

import ast
import gzip
import json
import operator
import re
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itl_env.errors import ConfigError, ITLError
from itl_env.sentences import LONGEST, SHORTEST, collect, hub_texts, read_texts, sentences
from itl_env.toolformer import (
    ToolformerMix,
    ToolformerRow,
    call_of,
    called,
    expressions,
    is_right,
    load_toolformer_rows,
    make_toolformer_data,
    tool_row,
    value_of,
    write_toolformer_rows,
)
from itl_env.toolformer_phrasings import OPERATORS, TRAINING, UNSEEN

FILES = ("train", "validation", "tool", "copy", "tool_ood")
DIVIDED = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip


def call(expression: str) -> str:
    return f"<tool_call>calculator({expression})</tool_call>"


def text_of(path: Path, n: int = 90) -> Path:
    """A file of n sentences that can be copied, and of others."""
    lines = [f"In the year {n} there were many birds in the park. Nobody minds." for n in range(n)]
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ToolformerRow]]:
    """The rows of each file of a small data set."""
    folder = tmp_path_factory.mktemp("toolformer")
    mix = ToolformerMix(
        text=(str(text_of(folder / "text.txt")),), n_tool=400, n_copy=50, n_evaluate=30, seed=3
    )
    make_toolformer_data(mix, folder / "data")
    return {name: load_toolformer_rows(folder / "data" / f"{name}.jsonl") for name in FILES}


def in_brackets(row: ToolformerRow) -> str:
    return row.target.removeprefix("<tool_call>calculator(").removesuffix(")</tool_call>")


# -- what is asked ---------------------------------------------------------------------------------


def test_there_are_as_many_phrasings_as_in_the_original() -> None:
    assert [len(TRAINING.own[each]) for each in OPERATORS] == [7, 7, 7, 6]
    assert len(TRAINING.generic) == 12
    assert len(UNSEEN.templates) >= 12


def test_no_phrasing_of_the_unseen_ones_is_trained_on() -> None:
    def plain(text: str) -> str:
        return re.sub(r"[^a-z{}]+", " ", text.lower()).strip()

    assert not set(map(plain, TRAINING.templates)) & set(map(plain, UNSEEN.templates))
    assert not set(map(plain, TRAINING.contexts)) & set(map(plain, UNSEEN.contexts))
    for some in (TRAINING, UNSEEN):
        assert len(set(map(plain, some.templates))) == len(some.templates)
        for template in some.templates:
            assert ("{a}" in template, "{b}" in template) == (True, True)
            assert ("{op}" in template) == (template in some.generic)


def test_rows_hold_the_sizes_and_kinds_that_were_asked_for(data) -> None:
    kinds = {name: [row.kind for row in rows] for name, rows in data.items()}
    assert {name: len(rows) for name, rows in data.items()} == {
        "train": 450, "validation": 45, "tool": 30, "copy": 30, "tool_ood": 30,
    }  # fmt: skip
    assert kinds["train"].count("tool") == 400
    assert kinds["validation"].count("copy") == 5
    assert all(set(kinds[name]) == {name} for name in ("tool", "copy", "tool_ood"))
    first = kinds["train"][:100]
    assert 3 <= first.count("copy") <= 30, "both kinds are mixed"


def test_the_value_of_a_row_is_what_its_call_comes_to(data) -> None:
    n = 0
    for row in (row for rows in data.values() for row in rows if row.kind != "copy"):
        tree = ast.parse(in_brackets(row), mode="eval").body
        a, b = tree.left.value, tree.right.value
        assert 1 <= min(a, b) <= max(a, b) <= 999
        exact = DIVIDED[type(tree.op)](Fraction(a), Fraction(b))
        assert abs(Fraction(row.value) - exact) <= max(1, abs(exact)) / 10**6
        assert row.target == call(f"{a}{'+-*/'[list(DIVIDED).index(type(tree.op))]}{b}")
        n += 1
    assert n == 400 + 40 + 30 + 30


def test_prompts_name_their_operands_and_never_the_tag(data) -> None:
    for row in (row for rows in data.values() for row in rows):
        assert "<tool_call>" not in row.prompt
        if row.kind != "copy":
            numbers = re.findall(r"\d+", row.prompt)
            assert sorted(numbers) == sorted(re.findall(r"\d+", in_brackets(row)))


def test_every_phrasing_comes_up_with_signs_and_words_and_half_have_a_context() -> None:
    rows = [tool_row(each, n, "tool", 0) for n, each in enumerate(expressions(4000, 0))]
    shapes = {re.sub(r"\d+", "#", row.prompt) for row in rows}
    n_own = sum(len(each) for each in TRAINING.own.values())
    bare = {shape for shape in shapes if not shape.startswith(TRAINING.contexts)}
    assert len(bare) == n_own + 12 * 8
    with_context = sum(row.prompt.startswith(TRAINING.contexts) for row in rows)
    assert 1850 <= with_context <= 2150
    for context in TRAINING.contexts:
        assert any(row.prompt.startswith(context) for row in rows)


def test_rows_in_other_words_have_no_words_of_the_training_rows() -> None:
    drawn = expressions(500, 0)
    shapes = [
        {re.sub(r"\d+", "#", tool_row(each, n, kind, 0).prompt) for n, each in enumerate(drawn)}
        for kind in ("tool", "tool_ood")
    ]
    assert not shapes[0] & shapes[1]
    assert not any(shape.startswith(TRAINING.contexts) for shape in shapes[1])


def test_no_calculation_comes_twice_nor_turned_round() -> None:
    drawn = expressions(8000, 0)  # of which a few would, by chance
    assert len({(each.operator, *sorted((each.a, each.b))) for each in drawn}) == 8000
    assert drawn[:100] == expressions(100, 0)


def test_nothing_of_one_file_is_in_another(data) -> None:
    def operands(row: ToolformerRow) -> tuple[str, ...]:
        a, op, b = re.split(r"([-+*/])", in_brackets(row))
        return (op, *sorted((a, b)))

    for one, other in combinations(data.values(), 2):
        assert not {row.prompt for row in one} & {row.prompt for row in other}
        assert not {row.id for row in one} & {row.id for row in other}
        called = [{operands(row) for row in rows if row.kind != "copy"} for rows in (one, other)]
        assert not called[0] & called[1]
    prompts = [row.prompt for rows in data.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_the_seed_and_the_texts_decide_all(tmp_path: Path) -> None:
    text = str(text_of(tmp_path / "text.txt"))
    mix = {"text": (text,), "n_tool": 20, "n_copy": 20, "n_evaluate": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_toolformer_data(ToolformerMix(**mix, seed=seed), tmp_path / name)
    for name in FILES:
        a, b, c = ((tmp_path / each / f"{name}.jsonl").read_bytes() for each in "abc")
        assert a == b != c
    assert str(expressions(1, 0)[0]) == "778+858", "the same with any version of any library"


# -- what is copied --------------------------------------------------------------------------------


def test_sentences_that_can_be_copied_have_a_digit_and_no_operator() -> None:
    kept = "There were 12 monkeys in the big old tree."
    others = (
        "There were twelve monkeys in the big old tree.",
        "There are 3 * 4 monkeys in the big old tree.",
        "There are 3 × 4 monkeys in the big old tree.",
        "There are 9 ÷ 3 monkeys in the big old tree.",
        "There are 9 − 3 monkeys in the big old tree.",
        "There are 12 well-fed monkeys in the big tree.",
        "There are 12 monkeys and/or apes in the tree.",
        "There are 12+ monkeys in the big old tree.",
        "The 12 monkeys write <tool_call> all day long.",
        "The 12 monkeys hold \0 all day long, and so on.",
        "The 12 monkeys hold \ud800 all day long, and so on.",
        "There were 12.",
        f"There were 12 monkeys {'very ' * 30}far away.",
    )
    for other in others:
        assert list(sentences([f"{other} {kept}"])) == [kept]


def test_sentences_end_at_a_mark_before_a_space_and_come_once() -> None:
    texts = (
        "It costs 3.50 at the shop near the\n   big station! Did 20 people ask for the price? No.",
        "Did 20 people ask for the price?",
    )
    assert list(sentences(texts)) == [
        "It costs 3.50 at the shop near the big station!",
        "Did 20 people ask for the price?",
    ]


@given(st.lists(st.text(st.sampled_from("ab1 .?!\n-\u2028é"), max_size=200), max_size=4))
def test_what_is_copied_is_one_line_of_fit_length(texts: list[str]) -> None:
    for sentence in sentences(texts):
        assert SHORTEST <= len(sentence) <= LONGEST
        assert sentence == " ".join(sentence.split())
        assert len(sentence.splitlines()) == 1


def test_texts_are_read_from_plain_files_and_from_fields_of_json(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "answer": "x"}, {"ctx": "b", "text": "y"}, {"text": "c"}, {"query": "d"}
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "plain.txt").write_text("e\nf\n\n \ng")
    (tmp_path / "plain.txt.gz").write_bytes(gzip.compress(b"h"))
    assert list(read_texts([tmp_path / "rows.jsonl"])) == ["a", "b", "c", "d"]
    assert list(read_texts([tmp_path / "rows.jsonl.gz"])) == ["a", "b", "c", "d"]
    plain = [tmp_path / "plain.txt", tmp_path / "plain.txt.gz"]
    assert list(read_texts(plain)) == ["e\nf", "g", "h"]


def test_a_file_that_holds_no_text_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    latin = tmp_path / "latin.txt"
    broken = tmp_path / "broken.txt.gz"
    latin.write_bytes(b"caf\xe9")
    broken.write_bytes(b"\x1f\x8bnothing")
    for line, why in (
        ('{"text": "a"}\n{"story": "b"}', "bad.jsonl, line 2: there is no text in any of the"),
        ('{"text": 3}', "line 1: there is no text"),
        ("[3]", "item 1: there is no text"),
        ("{", "bad.jsonl, line 1: it is not JSON"),
    ):
        bad.write_text(line)
        with pytest.raises(ConfigError, match=re.escape(why)):
            list(read_texts([bad]))
    for file, why in (
        (latin, "latin.txt is not UTF-8 at byte 3"),
        (broken, "Cannot read .*broken.txt.gz"),
        (tmp_path / "none.txt", "none.txt: No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=why):
            list(read_texts([file]))


def test_a_question_of_a_tool_row_is_not_copied_besides(tmp_path: Path) -> None:
    mix = ToolformerMix(n_tool=20, n_copy=1, n_evaluate=1, text=(str(tmp_path / "text.txt"),))
    drawn = expressions(mix.n_expressions, mix.seed)
    asked = [
        tool_row(each, place, "tool", mix.seed).prompt for place, each in enumerate(drawn[:-1])
    ]
    assert len(collect(asked, -1)) > 2, "they could be copied"
    fit = [f"There were {n} people who asked for the price." for n in range(3)]
    (tmp_path / "text.txt").write_text("\n\n".join([*asked, *fit]))
    make_toolformer_data(mix, tmp_path / "data")
    for name in ("train", "validation", "copy"):
        rows = load_toolformer_rows(tmp_path / "data" / f"{name}.jsonl")
        assert not {row.prompt for row in rows if row.kind == "copy"} & set(asked)


def test_too_few_sentences_are_counted(tmp_path: Path) -> None:
    text = text_of(tmp_path / "text.txt", 7)
    mix = ToolformerMix(text=(str(text),), n_tool=5, n_copy=6, n_evaluate=1)
    with pytest.raises(ConfigError, match="holds 7 sentences to copy, fewer than the 8 that are"):
        make_toolformer_data(mix, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_hub_that_cannot_be_reached_names_the_flag_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub.constants

    # The libraries' own switches, which refuse at once.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ITLError, match=r"allenai/c4 cannot be had .*\(--text FILE\)\.$"):
        make_toolformer_data(ToolformerMix(), tmp_path / "data")


def test_of_the_hub_no_more_is_read_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked, read = [], []

    def stream(*place: object, **how: object):
        asked.append((place, how))
        for n in range(100):
            read.append(n)
            yield {"text": f"In the year {n} there were many birds in the park.", "url": "x"}

    monkeypatch.setattr(datasets, "load_dataset", stream)
    assert len(collect(hub_texts(), 5)) == 5
    assert asked == [(("allenai/c4", "en"), {"split": "train", "streaming": True})]
    assert len(read) == 5


# -- files -----------------------------------------------------------------------------------------


def test_rows_come_back_from_a_file_as_they_were(tmp_path: Path, data) -> None:
    rows = [*data["tool_ood"], *data["copy"]]
    write_toolformer_rows(rows, tmp_path / "rows.jsonl")
    assert load_toolformer_rows(tmp_path / "rows.jsonl") == rows


GOOD = {"id": "a", "kind": "tool", "prompt": "p", "target": call("2+3"), "value": "5"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"value": "6"}, "field 'target' is no call of the calculator that comes to '6'"),
        ({"value": ""}, "field 'target' is no call"),
        ({"value": "nan"}, "field 'target' is no call"),
        ({"value": 5}, "field 'value' must be text, not 5"),
        ({"target": "calculator(2+3)"}, "field 'target' is no call"),
        ({"target": " "}, "field 'target' is empty"),
        ({"prompt": "a\0b"}, "field 'prompt' holds a NUL character"),
        ({"prompt": None}, "field 'prompt' must be text, not None"),
        ({"kind": "both"}, "field 'kind' is 'both'; it must be tool, copy, tool_ood"),
        ({"kind": "copy"}, "field 'value' is '5', but a copy has none"),
        ({"more": "x"}, "field 'more' is unknown"),
        ({"id": "first"}, "field 'id' is 'first', as that of a row before it"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, change: dict, why: str) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [{**GOOD, "id": "first"}, {**GOOD, **change}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=re.escape(f"rows.jsonl, line 2: {why}")):
        load_toolformer_rows(file)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for content, why in (
        ("", "holds no rows"),
        ("3", "line 1: it is no JSON object"),
        ('{"id": "a"}', "line 1: field 'kind' is missing"),
        ("{", "line 1: it is not JSON"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=why):
            load_toolformer_rows(file)


def test_a_folder_is_written_anew_only_by_the_same_mix(tmp_path: Path) -> None:
    text, out = str(text_of(tmp_path / "text.txt")), tmp_path / "data"
    mix = ToolformerMix(text=(text,), n_tool=5, n_copy=5, n_evaluate=2)
    report = make_toolformer_data(mix, out)
    (out / "tool.jsonl").write_text("cut")
    make_toolformer_data(mix, out)
    assert len(load_toolformer_rows(out / "tool.jsonl")) == 2
    assert json.loads((out / "report.json").read_text()) == report
    assert report["rows"]["train.jsonl"] == {"copy": 5, "tool": 5}
    assert report["settings"]["n_tool"] == 5
    assert "| train.jsonl | 5 | 5 | 0 |" in (out / "report.md").read_text()
    with pytest.raises(ConfigError, match="holds data of other settings"):
        make_toolformer_data(ToolformerMix(text=(text,), n_tool=6, n_copy=5, n_evaluate=2), out)
    (out / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds other things, such as notes"):
        make_toolformer_data(mix, out)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        make_toolformer_data(mix, text)


def test_a_mix_that_cannot_be_is_refused() -> None:
    for change, why in (
        ({"n_tool": 0}, "n_tool is 0"),
        ({"n_copy": -1}, "n_copy is -1"),
        ({"n_evaluate": 0}, "n_evaluate is 0"),
        ({"validation": 0.0}, "validation is 0.0"),
        ({"validation": 1.5}, "validation is 1.5"),
        ({"n_tool": 10**6}, "at most 998,001 rows"),
    ):
        with pytest.raises(ConfigError, match=why):
            ToolformerMix(**change)


# -- what a model has written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_called", "expression"),
    [
        (call("603+560"), True, "603+560"),
        (f" {call('7/8')}\n", True, "7/8"),
        ("<tool_call>calculator(603+560)", True, None),
        ("<tool_call>", True, None),
        (f"What is 603 plus 560?\n{call('603+560')}", False, None),
        (f"{call('603+560')} is 1163", True, None),
        (f"{call('1+2')}{call('1+2')}", True, None),
        (call("603 + 560"), True, None),
        (call("1+2+3"), True, None),
        (call("-1+2"), True, None),
        (call("1**2"), True, None),
        (call("1//2"), True, None),
        (call("1.5+2"), True, None),
        (call("٣+2"), True, None),
        (call(""), True, None),
        (call("__import__('os')"), True, None),
        ("<tool_call>search(603+560)</tool_call>", True, None),
        ("", False, None),
    ],
)
def test_a_call_is_nothing_but_the_call(text: str, is_called: bool, expression: str | None) -> None:
    assert called(text) == is_called
    assert call_of(text) == expression


def test_a_call_is_right_if_it_comes_to_the_value() -> None:
    assert is_right(call("560+603"), "1163"), "however it is asked"
    assert is_right(call("1/3"), "0.333333333333")
    assert not is_right(call("1/3"), "0.3333")
    assert not is_right(call("603+560"), "1164")
    assert not is_right("1163", "1163")
    assert (value_of(call("7/8")), value_of(call("3-10"))) == ("0.875", "-7")
    for without_value in ("5/0", "007+1", "9" * 300 + "+1"):
        assert call_of(call(without_value)) == without_value
        assert value_of(call(without_value)) is None
        assert not is_right(call(without_value), "0")
    for no_number in ("", "many", "nan", "inf"):
        assert not is_right(call("1+1"), no_number)


@given(st.text(st.sampled_from("<tool_cal>u r()/+-*0123456789 \n"), max_size=80))
def test_scoring_takes_any_text(text: str) -> None:
    if call_of(text) is not None:
        assert called(text)
    assert is_right(text, value_of(text) or "0") == (value_of(text) is not None)
