"""Commands on tool calling: data is made, verified, split and told about."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.commands_toolcall import ToolcallData, mix
from itl_env.samples import load_samples
from itl_env.tool_data import PUBLISHED

from .command_line import sentence


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[object, ...]:
    """Flags that name local files in place of the hub's, with a row in each that is refused."""
    gsm8k = [
        {"question": f"How many in {n}?", "answer": f"<<{n}*7={n * 7}>>\n#### {n * 7}"}
        for n in range(2, 12)
    ]
    python = [
        {"instruction": f"Square {n}.", "input": "", "output": f"print({n} ** 2)"}
        for n in range(10)
    ]
    gsm8k.append({"question": "Why?", "answer": "<<1+1=3>>\n#### 3"})
    python.append({"instruction": "Wait.", "input": "", "output": "pass"})
    return (
        *("--gsm8k", lines(tmp_path / "gsm8k.jsonl", gsm8k)),
        *("--python", lines(tmp_path / "python.jsonl", python)),
        *("--instructions", "sample"),
    )


def test_generated_data_is_made_and_told(run, tmp_path: Path) -> None:
    out = tmp_path / "data"
    options = ("--categories", "calculator", "no_tool", "--n", 100, "--level", 2, "--seed", 5)
    status, said, err = run("toolcall", "data", "--out", out, *options)
    assert (status, err) == (0, "")
    assert re.search(r"^generated +calculator +40 +10$", said, re.M)
    assert re.search(r"^generated +no_tool +40 +10$", said, re.M)
    assert re.search(r"^all +80 +20$", said, re.M)
    assert f"in {out}; what was refused and why is in {out / 'report.md'}" in said
    assert len(load_samples(out / "train.jsonl")) == 80
    assert len(load_samples(out / "validation.jsonl")) == 20


def test_local_files_stand_in_for_the_hub(run, files, tmp_path: Path) -> None:
    out = tmp_path / "data"
    options = ("--preset", "published", "--n", 50, *files)
    status, said, err = run("toolcall", "data", "--out", out, *options)
    assert (status, err) == (0, "")
    assert re.search(r"^gsm8k +calculator +8 +2$", said, re.M)
    assert re.search(r"^python +python_exec +8 +2$", said, re.M)
    assert re.search(r"^instructions +no_tool +24 +6$", said, re.M)


def test_the_published_preset_warns_of_what_is_missing(run, files, tmp_path: Path) -> None:
    options = ("--preset", "published", *files)
    status, said, err = run("toolcall", "data", "--out", tmp_path / "data", *options)
    assert status == 0
    warned = err.splitlines()
    assert warned[0] == (
        "itl: warning: gsm8k has 10 good rows among 11, fewer than the 1,600 wanted "
        "(refused: wrong_value 1)"
    )
    assert "instructions has 40 good rows among 40, fewer than the 4,800 wanted" in warned[2]
    assert "refused 1 of gsm8k: wrong_value 1\n" in said


def test_own_files_are_taken_alone_or_besides(run, files, tmp_path: Path) -> None:
    run("toolcall", "data", "--out", tmp_path / "a", "--preset", "none", *files)
    mine = (tmp_path / "a" / "train.jsonl", tmp_path / "a" / "validation.jsonl")
    n = sum(len(load_samples(file)) for file in mine)
    assert n == 60
    out = tmp_path / "b"
    status, said, _ = run("toolcall", "data", "--out", out, "--n", 30, "--files", *mine)
    assert status == 0
    assert re.search(r"^all +72 +18$", said, re.M)
    assert "python" in said


def test_what_cannot_be_made_is_refused_in_one_sentence(run, tmp_path: Path) -> None:
    out = tmp_path / "data"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    bad = lines(tmp_path / "bad.jsonl", [{"id": "a", "source": "b"}])
    for options, said in (
        (("--preset", "none"), "name --files, --gsm8k, --python or --instructions"),
        (("--preset", "none", "--n", 5, "--files", bad), "n is for a preset"),
        (("--n", -1), "n is -1"),
        (("--n", 1), "less than one for each of 3 categories"),
        (("--level", 99), "no level 99"),
        (("--validation", 2), "validation is 2.0"),
        (("--files", bad), "bad.jsonl, line 1: field 'prompt' is missing"),
        (("--gsm8k", tmp_path / "none.jsonl"), "none.jsonl: No such file"),
        (("--preset", "none", "--python", bad), "python has no good row among 1"),
        (("--out", tmp_path / "full"), "full holds other things, such as notes.txt"),
    ):
        status, _, err = run("toolcall", "data", "--out", out, *options)
        assert status == 2
        assert said in sentence(err)
        assert not out.exists()


def test_a_hub_that_cannot_be_reached_is_told_with_the_flag_for_a_file(
    run, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub.constants

    # The libraries' own switches, which refuse at once.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for place, flag in enumerate(("gsm8k", "python")):
        status, _, err = run(
            "toolcall", "data", "--out", tmp_path / "data", "--preset", "published",
            *files[: 2 * place],
        )  # fmt: skip
        assert status == 1
        assert "cannot be had from the hub" in sentence(err)
        assert f"(--{flag} FILE)" in sentence(err)
    assert not (tmp_path / "data").exists()


def test_the_presets_of_the_command_are_those_of_the_library() -> None:
    assert mix(ToolcallData(out=Path("x"), preset="published")) == PUBLISHED
    assert mix(ToolcallData(out=Path("x"))).generated == 10_000
