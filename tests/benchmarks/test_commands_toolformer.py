"""Commands on calculator calls as text: data is made, a model is trained, merged and asked."""

import io
from pathlib import Path

import pytest
import yaml

from benchmarks.cli import main
from benchmarks.commands_toolformer import ToolformerData, ToolformerTrain, judged
from benchmarks.training import part_of
from itl_env.toolformer import ToolformerMix, load_toolformer_rows
from itl_train.toolformer_config import ToolformerSettings

from ..itl_train.test_sft import tiny_llama
from .command_line import sentence

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = ("--n-tool", "8", "--n-copy", "8", "--n-evaluate", "2")
SMALL = ("--epochs", "0.5", "--batch-size", "4", "--n-evaluate", "1", "--lora-rank", "2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(f"There were {n} people in the park." for n in range(11)))
    return file


@pytest.fixture(scope="module")
def data(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toolformer") / "data"
    assert main(["toolformer", "data", "--text", str(text), *SIZES, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    llama = tiny_llama(folder / "llama")
    options = ("--data", str(data), "--model", str(llama), *SMALL, "--out", str(folder / "run"))
    assert main(["toolformer", "train", *options]) == 0
    return folder / "run"


def test_data_is_made_and_told(run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    status, said, err = run("toolformer", "data", "--text", text, *SIZES, "--out", out)
    assert (status, err) == (0, "")
    assert "train.jsonl       8 copy, 8 tool\n" in said
    assert "tool_ood.jsonl    2 tool_ood\n" in said
    assert f"in {out}; see {out / 'report.md'}" in said
    assert len(load_toolformer_rows(out / "validation.jsonl")) == 2


def test_what_cannot_be_made_is_refused_in_one_sentence(run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"story": "none"}\n')
    for options, said in (
        (("--text", bad), "bad.jsonl, line 1: there is no text in any of the fields"),
        (("--text", tmp_path / "none.txt"), "none.txt: No such file"),
        (("--text", text), "holds 11 sentences to copy, fewer than the 5,700 that are needed"),
        (("--text", text, "--n-tool", 0), "n_tool is 0"),
    ):
        status, _, err = run("toolformer", "data", *options, "--out", out)
        assert status == 2
        assert said in sentence(err)
        assert not out.exists()


def test_a_hub_that_cannot_be_reached_is_told_with_the_flag_for_files(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network.\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    status, _, err = run("toolformer", "data", "--out", tmp_path / "data")
    assert status == 1
    assert sentence(err) == (
        "itl: allenai/c4 cannot be had from the hub: no network; files of text serve as well "
        "(--text FILE)."
    )


def test_a_model_is_trained_and_its_command_goes_on(run, trained: Path, data: Path) -> None:
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert (settings["lora_rank"], settings["epochs"], settings["clip"]) == (2, 0.5, 0.8)
    options = ("--data", data, "--model", settings["model"], *SMALL, "--out", trained)
    status, said, _ = run("toolformer", "train", *options)
    assert status == 0
    assert f"{trained} is finished; this is its result" in said
    assert "step 2: exact calls 0.0% [" in said
    assert "step 2: exact copies 0.0% [" in said
    status, _, err = run("toolformer", "train", *options, "--lr", "0.1")
    assert (status, "holds a run with lr=" in sentence(err)) == (2, True)


def test_a_run_is_merged_once(run, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    status, said, _ = run("toolformer", "merge", trained, "--out", out)
    assert (status, said) == (0, f"the model is in {out}\n")
    assert (out / "model.safetensors").is_file()
    status, _, err = run("toolformer", "merge", trained, "--out", out)
    assert (status, sentence(err)) == (2, f"itl: {out} exists; name a new folder.")


def test_a_model_is_asked_once_or_line_by_line(
    run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write(model: object, tokenizer: object, prompts: list[str], n: int) -> list[str]:
        asked.extend(prompts)
        return ["<tool_call>calculator(3+4)</tool_call>"]

    status, said, _ = run("toolformer", "try", "Hi", "--model", trained, "--max-new-tokens", 3)
    assert (status, said.splitlines()[-1]) == (0, "no call")
    monkeypatch.setattr("itl_train.toolformer_text.generate_texts", write)
    verdict = "<tool_call>calculator(3+4)</tool_call>\na valid call: 3+4 = 7\n"
    status, said, _ = run("toolformer", "try", "What is 3 plus 4?", "--model", trained)
    assert (status, said) == (0, verdict)
    monkeypatch.setattr("sys.stdin", io.StringIO("Add 3 and 4.\n\n4 and 3?\n"))
    status, said, _ = run("toolformer", "try", "--model", trained)
    assert status == 0
    assert said.count(verdict) == 2
    assert asked == ["What is 3 plus 4?", "Add 3 and 4.", "4 and 3?"]
    status, _, err = run("toolformer", "try", "Hi", "--model", trained, "--device", "abacus")
    assert (status, "abacus" in sentence(err)) == (2, True)


def test_what_was_written_is_judged_and_cannot_act_on_a_terminal() -> None:
    for written, verdict in (
        ("<tool_call>calculator(7/8)</tool_call>", "a valid call: 7/8 = 0.875"),
        ("<tool_call>calculator(7/0)</tool_call>", "a valid call, but it has no value"),
        ("<tool_call>calculator(7)</tool_call>", "it begins like a call, but is no valid one"),
        ("There are 7 of them.", "no call"),
    ):
        assert judged(written) == f"{written}\n{verdict}"
    assert judged("\033[2J\n") == "\\x1b[2J\\n\nno call"


def test_the_flags_are_the_settings_of_the_library() -> None:
    assert part_of(ToolformerData(out=Path("x")), ToolformerMix) == ToolformerMix()
    flags = ToolformerTrain(model="m", data="d")
    assert part_of(flags, ToolformerSettings) == ToolformerSettings(model="m", data="d")
