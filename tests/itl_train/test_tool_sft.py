"""Fine-tuning on tool calling: what is trained, what is cut, and what cannot work is refused."""

import dataclasses
import signal
from pathlib import Path

import pytest
import torch
import yaml

from itl_agents.pretrained import load_pretrained
from itl_agents.render import IGNORED
from itl_env.errors import ConfigError
from itl_env.samples import Sample, Step, load_samples, write_samples
from itl_train.checkpoint import checkpoints
from itl_train.tool_sft import ToolSFTRun, ToolSFTSettings, train_tool_sft

from .test_sft import rows, tiny_llama, weights

END = "<|im_end|>"


def calculation(n: int, prompt: str = "") -> Sample:
    step = Step("calculator", {"expression": f"{n} + {n}"})
    return Sample(f"sum-{n}", "own", "calculator", prompt or f"{n} twice?", (step,), str(2 * n))


def question(word: str) -> Sample:
    return Sample(f"say-{word}", "own", "no_tool", f"Say {word}.", (), word)


TRAIN = [*(calculation(n) for n in range(1, 7)), *map(question, ("ox", "fly"))]
REST = [*(calculation(n) for n in range(7, 10)), question("bee")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def folder_of(folder: Path, train: list[Sample], rest: list[Sample] = REST) -> Path:
    folder.mkdir(exist_ok=True)
    write_samples(train, folder / "train.jsonl")
    write_samples(rest, folder / "validation.jsonl")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data"), TRAIN)


def small(data: Path, llama: Path, **changes: object) -> ToolSFTSettings:
    settings = ToolSFTSettings(
        data=str(data), model=str(llama), instruction="Answer in JSON. ", lora_rank=4, n_steps=8,
        batch_size=4, log_every=2, evaluate_every=4, n_evaluate=4, checkpoint_every=3,
        max_tokens=120, max_new_tokens=40, n_threads=1,
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def trained(run: ToolSFTRun) -> list[tuple[str, str]]:
    """Of each row of a run, in the order of training: all of it, and what is trained."""
    found = []
    for row in run.trainer.train_dataset:
        labels = [label for label in row["labels"] if label != IGNORED]
        found.append((run.chat.decode(row["input_ids"]), run.chat.decode(labels)))
    return found


def test_the_defaults_are_those_of_the_published_run() -> None:
    settings = ToolSFTSettings(data="d", model="m")
    assert (settings.lora_rank, settings.batch_size, settings.lr) == (32, 8, 5e-5)
    assert (settings.steps, settings.max_tokens, settings.log_every) == (800, 512, 50)
    assert (settings.evaluation_steps, settings.n_evaluate) == (200, 50)
    assert settings.checkpoint_steps == 200


def test_the_json_and_the_token_that_ends_it_are_trained(
    data: Path, llama: Path, tmp_path: Path
) -> None:
    run = ToolSFTRun(small(data, llama, n_steps=2), tmp_path)
    task = run.subject.data.seen
    pairs = trained(run)
    assert {said for _, said in pairs} == {task.expert_turn(each, 0) + END for each in TRAIN}
    for whole, said in pairs:
        assert whole.count("Answer in JSON. ") == 1
        assert whole.rstrip().endswith(said)


def test_a_model_learns_to_call_the_tool(data: Path, llama: Path, tmp_path: Path) -> None:
    settings = small(
        data, llama, lora_rank=0, lr=5e-3, n_steps=400, evaluate_every=25, n_evaluate=8,
        stop_at=1.0, batch_size=8, checkpoint_every=1000,
    )  # fmt: skip
    last = train_tool_sft(settings, tmp_path)
    assert last["right_outcome_seen"] == 1.0
    assert last["step"] < 400, "it stopped once it could"
    assert (last["asked_seen"], last["asked_unseen"]) == (8, 4)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        f"step-{last['step']:07d}"
    ]


def test_an_interrupted_run_goes_on_to_the_same_weights(
    data: Path, llama: Path, tmp_path: Path
) -> None:
    settings = small(data, llama)
    train_tool_sft(settings, tmp_path / "whole")

    def interrupt(row: dict) -> None:
        if row["step"] == 4 and "loss" in row:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_tool_sft(settings, tmp_path / "broken", interrupt)
    run = ToolSFTRun(settings, tmp_path / "broken")
    assert 4 <= run.step < 8
    run.train()
    pairs = zip(weights(tmp_path / "whole"), weights(tmp_path / "broken"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    found = rows(tmp_path / "broken")
    assert [row["step"] for row in found if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in found if "right_tool_unseen" in row] == [4, 8]
    names = [path.name for path in checkpoints(tmp_path / "whole" / "checkpoints")]
    assert names == ["step-0000003", "step-0000006", "step-0000008"]
    assert all(row["epoch"] == row["step"] * 4 / 8 for row in found if "epoch" in row)


def test_a_long_prompt_loses_its_left_part_and_the_json_stays(llama: Path, tmp_path: Path) -> None:
    long = calculation(3, "word " * 300 + "What is three twice?")
    data = folder_of(tmp_path / "data", [long, question("ox")])
    run = ToolSFTRun(small(data, llama, batch_size=2, n_steps=1), tmp_path / "run")
    assert sorted(len(row["input_ids"]) for row in run.trainer.train_dataset)[-1] == 120
    (whole, said), *_ = [pair for pair in trained(run) if "three twice" in pair[0]]
    assert said == run.subject.data.seen.expert_turn(long, 0) + END
    assert "Answer in JSON" not in whole, "the left part, which is the instruction here"
    assert whole.startswith("<|im_start|>system\n"), "the template is whole"
    assert f"What is three twice?{END}\n<|im_start|>assistant\n{said}" in whole
    assert run.agent().max_tokens == 120


def test_a_json_that_does_not_fit_names_its_sample(llama: Path, tmp_path: Path) -> None:
    step = Step("python", {"code": "print('" + "ab " * 200 + "')"})
    sample = Sample("endless", "own", "python_exec", "Go on.", (step,), "ab " * 200)
    data = folder_of(tmp_path / "data", [question("ox"), sample])
    with pytest.raises(ConfigError, match=r"Sample 'endless' takes \d+ tokens even without"):
        train_tool_sft(small(data, llama), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_learnt_is_refused_before_anything_is_written(
    data: Path, llama: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    write_samples(TRAIN, half / "train.jsonl")
    broken = folder_of(tmp_path / "broken", TRAIN)
    (broken / "train.jsonl").write_text('{"id": "a"}\n')
    steps = (Step("calculator", {"expression": "2 + 2"}), Step("calculator", {"expression": "4*3"}))
    several = Sample("both", "own", "multi_turn", "2 + 2, times 3?", steps, "12")
    many = folder_of(tmp_path / "many", [several])
    same = folder_of(tmp_path / "same", [calculation(1, "How much?"), calculation(2, "How much?")])
    for folder, changes, why in (
        (tmp_path / "none", {}, "There is no train.jsonl in"),
        (half, {}, "There is no validation.jsonl in"),
        (broken, {}, "line 1: field 'source' is missing"),
        (many, {}, "Sample 'both' takes 3 turns, but max_turns is 1"),
        (same, {}, "'sum-1' and 'sum-2' have one prompt"),
        (data, {"n_steps": 0}, "n_steps is 0"),
        (data, {"lr": 0.0}, "lr is 0"),
        (data, {"max_tokens": 40}, "leaves no room for a question"),
        (data, {"stop_at": 2.0}, "stop_at is 2.0"),
        (data, {"max_tokens": 5000, "model": str(llama), "instruction": "word " * 400},
         "more than the 256 of the model"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            train_tool_sft(small(folder, llama, **changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_several_turns_are_trained_where_the_template_shows_replies(
    llama: Path, tmp_path: Path
) -> None:
    steps = (Step("calculator", {"expression": "2 + 2"}), Step("calculator", {"expression": "4*3"}))
    several = Sample("both", "own", "multi_turn", "2 + 2, times 3?", steps, "12")
    data = folder_of(tmp_path / "data", [several], [several])
    settings = small(data, llama, max_turns=3, batch_size=1, n_steps=1, max_tokens=240)
    run = ToolSFTRun(settings, tmp_path / "run")
    task = run.subject.data.seen
    ((_, said),) = trained(run)
    assert said == "".join(task.expert_turn(several, n) + END for n in range(3))
    run.train()
    gemma = tiny_llama(tmp_path / "gemma", "gemma")
    with pytest.raises(ConfigError, match="cannot show the tool's reply"):
        train_tool_sft(dataclasses.replace(settings, model=str(gemma)), tmp_path / "gemma-run")


def test_a_run_is_recorded_so_that_it_can_be_found_from_anywhere(
    data: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    train_tool_sft(small(Path(data.name), llama, n_steps=1), tmp_path / "run")
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["data"] == str(data)
    assert len(load_samples(Path(recorded["data"]) / "train.jsonl")) == 8
    adapter = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert (adapter / "adapter_model.safetensors").is_file()
    load_pretrained(adapter)
