"""Commands on models that call tools: train, fine-tune, measure, draw."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks import tool_evaluation
from benchmarks.cli import main
from benchmarks.tool_evaluation import measure, table
from benchmarks.tool_plots import run_figures
from itl_agents import Conversation
from itl_agents.tool_metrics import METRICS
from itl_env.actions import call_turn, final_turn
from itl_env.episode import Completion, read_episodes
from itl_env.generated import generate
from itl_env.samples import Sample, Step, load_samples, write_samples
from itl_env.tool_call import INSTRUCTION, ToolCallTask

from ..itl_train.rl_models import qwen_folder
from ..itl_train.test_sft import tiny_llama
from ..itl_train.test_tool_sft import calculation, question
from .command_line import TINY, sentence

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    *("--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--n-steps", "4", "--log-every", "2"),
    *("--n-evaluate", "4", "--evaluate-every", "2", "--checkpoint-every", "2"),
    *("--max-new-tokens", "20", "--batch-size", "4"),
)
ROOMS = ("--max-tokens", "200", "--max-new-tokens", "12", "--instruction", "JSON: ")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toolcall") / "data"
    command = ["toolcall", "data", "--n", "60", "--validation", "0.4", "--out", str(out)]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["toolcall", "train", "--data", str(data), *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    llama = tiny_llama(folder / "llama")
    command = (
        "toolcall", "sft", "--data", data, "--model", llama, *ROOMS, "--n-steps", "2",
        "--n-evaluate", "2", "--checkpoint-every", "1", "--log-every", "1", "--out", folder / "run",
    )  # fmt: skip
    assert main([str(word) for word in command]) == 0
    return folder / "run"


class Replies:
    """An agent that says what it is told to, by a word of the prompt."""

    name = "replies"

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        prompts = [talk.messages[0].content for talk in conversations]
        return [Completion(self.said[prompt]) for prompt in prompts]


def test_the_figures_are_counts_over_all_samples() -> None:
    samples = [*map(calculation, range(1, 6)), *map(question, ("ox", "fly", "bee"))]
    code = Step("python", {"code": "print(4 ** 2)"})
    samples.append(Sample("square", "own", "python_exec", "Four squared?", (code,), "16"))
    said = {
        "1 twice?": call_turn("calculator", {"expression": "1 * 2"}),  # all is right
        "2 twice?": call_turn("calculator", {"expression": "2 + 3"}),  # other arguments
        "3 twice?": call_turn("python", {"code": "print(3 + 3)"}),  # another tool, right outcome
        "4 twice?": final_turn("8"),  # not computed
        "5 twice?": "ten",  # no JSON
        "Say ox.": final_turn("ox"),
        "Say fly.": final_turn("fl"),
        "Say bee.": call_turn("calculator", {"expression": "1"}),  # where none was due
        "Four squared?": call_turn("python", {"code": "import fractions"}),
    }
    task = ToolCallTask(samples, instruction="")
    kept: list[Any] = []
    rows, shown = measure(Replies(said), task, samples, keep=kept.append)
    assert [(row["category"], row["n"]) for row in rows] == [
        ("calculator", 5), ("no_tool", 3), ("python_exec", 1), ("all", 9),
    ]  # fmt: skip
    counts = {row["category"]: [row[f"{metric}_right"] for metric in METRICS] for row in rows}
    assert counts["calculator"] == [4, 3, 2, 1, 2]
    assert counts["no_tool"] == [3, 2, 2, 2, 1]
    assert counts["all"][0] == 8
    every = rows[-1]
    assert every["right_outcome"] == every["right_outcome_right"] / 9
    # Wilson 1927, by hand: 3 of 9 between 12.1% and 64.6%.
    assert every["right_outcome_right"] == 3
    assert every["right_outcome_low"] == pytest.approx(0.1206, abs=1e-3)
    assert every["right_outcome_high"] == pytest.approx(0.6458, abs=1e-3)
    unsupported = sum(turn.error == "unsupported" for each in kept for turn in each.turns)
    assert every["unsupported"] == rows[2]["unsupported"] == unsupported == 1
    # The outcome's reward: 1 for what is right, less 0.1 for what is no JSON.
    assert every["reward"] == pytest.approx((3 - 0.1) / 9)
    assert len(shown) == 3
    assert "33.3% [12.1, 64.6]" in table([{"model": "m", **row} for row in rows])


def test_scripted_agents_are_measured(run, data: Path, tmp_path: Path) -> None:
    out, episodes = tmp_path / "expert.csv", tmp_path / "expert.jsonl"
    options = ("--data", data, "--out", out, "--episodes", episodes)
    status, said, _ = run("toolcall", "eval", "expert", *options)
    assert status == 0
    samples = load_samples(data / "validation.jsonl")
    assert f"expert, {len(samples)} validation samples of {data}" in said
    found = pd.read_csv(out).set_index("category")
    assert found.loc["all", "n"] == len(samples)
    assert (found[list(METRICS)] == 1.0).all(axis=None)
    assert sorted(each.sample.id for each in read_episodes(episodes)) == sorted(
        each.id for each in samples
    )
    status, said, _ = run("show", episodes, "--n", 1)
    assert status == 0
    assert re.search(r"episode 0 by expert: \w+ sample '.*' expects '.*'; reward 1, answered", said)
    assert re.search(r"<\|assistant\|>\[\{.*\}<\|(eod|database)\|>\]", said)
    options = ("--data", data, "--part", "train", "--n", 10, "--rubric", "classic")
    status, said, _ = run("toolcall", "eval", "direct", *options)
    assert status == 0
    assert "10 train samples" in said
    assert re.search(r"^all +10 +100\.0%.* 0\.0% \[0\.0, 27\.8\]", said, re.M)
    status, _, err = run("toolcall", "eval", "expert", "--data", data, "--out", out)
    assert (status, "expert.csv exists" in sentence(err)) == (2, True)


def test_a_small_llama_is_trained_and_measured(run, data: Path, trained: Path) -> None:
    command = ("toolcall", "train", "--data", data, *SMALL, "--out", trained)
    status, said, _ = run(*command)
    assert status == 0
    assert "is finished" in said
    assert re.search(r"step 4: right outcomes [\d.]+% \[.*\] on other samples", said)
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert (settings["lr"], settings["rope_theta"], settings["data"]) == (6e-3, 100.0, str(data))
    status, _, err = run(*command, "--lr", 1e-3)
    assert (status, "holds a run with lr" in sentence(err)) == (2, True)
    status, said, _ = run("toolcall", "eval", trained, "--n", 6)
    assert status == 0
    assert "step-0000004, 6 validation samples" in said
    assert said.count("expected") == 3
    status, _, err = run("eval", trained)
    assert (status, "see `itl toolcall eval`" in sentence(err)) == (2, True)


def test_every_checkpoint_is_measured_once(
    run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("toolcall", "eval", trained, "--every", "--n", 6)
    status, said, _ = run(*command)
    assert status == 0
    folder = trained / "evaluations"
    found = pd.read_csv(folder / "toolcall.csv")
    assert sorted(set(found["step"])) == [2, 4]
    assert (folder / "toolcall.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((folder / "step-0000004" / "toolcall-validation.json").read_text())
    assert len(kept["shown"]) == 3

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(tool_evaluation, "measure", refuse)
        assert run(*command)[:2] == (0, said)
        (folder / "step-0000002" / "toolcall-validation.json").unlink()
        for again in (command, (*command[:-1], 5)):
            with pytest.raises(AssertionError, match="measured again"):
                run(*again)


def test_a_pretrained_model_is_fine_tuned_and_asked_as_it_was_trained(
    run, tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sft.csv"
    status, said, _ = run("toolcall", "eval", tuned, "--every", "--n", 3, "--out", out)
    assert status == 0
    found = pd.read_csv(out)
    models = list(dict.fromkeys(found["model"]))
    assert models == ["base", "step-0000001", "step-0000002"]
    assert out.with_suffix(".png").exists()
    file = tuned / "evaluations" / "base" / "toolcall-validation.json"
    made_by = json.loads(file.read_text())["made_by"]
    asked = {name: made_by[name] for name in ("instruction", "max_tokens", "max_new_tokens")}
    assert asked == {"instruction": "JSON: ", "max_tokens": 200, "max_new_tokens": 12}
    checkpoint = tuned / "checkpoints" / "step-0000001"
    status, said, _ = run("toolcall", "eval", checkpoint, "--n", 2)
    assert status == 0
    assert "step-0000001, 2 validation samples" in said


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_run_of_native_calls_is_asked_as_its_template_calls(run, tmp_path: Path) -> None:
    samples = list(generate(12, 3, categories=("multi_turn",)))
    write_samples(samples[:8], tmp_path / "train.jsonl")
    write_samples(samples[8:], tmp_path / "validation.jsonl")
    status, _, err = run(
        "toolcall", "rl", "--model", qwen_folder(tmp_path / "qwen"), "--data", tmp_path,
        *("--calls", "native", "--max-turns", "4", "--max-new-tokens", "8", "--n-steps", "1"),
        *("--n-generations", "2", "--batch-size", "4", "--steps-per-generation", "1"),
        *("--n-evaluate", "2", "--out", tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    assert run("toolcall", "eval", tmp_path / "run", "--every")[0] == 0
    found = pd.read_csv(tmp_path / "run" / "evaluations" / "toolcall.csv")
    assert list(found["model"].unique()) == ["base", "step-0000001"]
    # What an untrained model says is an answer, not a turn that fails to be JSON.
    assert set(found["valid_json"]) == {1.0}
    assert set(found["n"]) == {4}


def test_a_model_of_no_run_is_told_the_forms(data: Path, tuned: Path, tmp_path: Path) -> None:
    llama = yaml.safe_load((tuned / "config.yaml").read_text())["model"]
    measured = tool_evaluation.Measured(data=str(data)).for_model(llama)
    assert measured.instruction == INSTRUCTION
    assert (measured.max_turns, measured.max_new_tokens, measured.max_tokens) == (1, 200, 712)
    plain = tool_evaluation.Measured(data=str(data), instruction="").for_model(llama)
    assert plain.instruction == ""


def test_metrics_are_drawn_whatever_they_are(run, trained: Path, tmp_path: Path) -> None:
    status, said, _ = run("toolcall", "plot", trained)
    assert status == 0
    names = ["metrics.csv", "loss.png", "evaluations.png", "training.png"]
    assert said.split() == [str(trained / name) for name in names]
    assert all((trained / name).stat().st_size > 100 for name in names)
    found = pd.read_csv(trained / "metrics.csv")
    assert found["loss"].notna().sum() == 2
    assert found["right_outcome_unseen"].notna().sum() == 2
    rows = [
        {
            "step": step, "reward": 0.1 * step, "kl": 0.01 * step, "entropy": 1.0, "note": "x",
            **{f"reward/outcome/{part}": value for part, value in
               (("mean", 0.1 * step), ("min", -0.1), ("max", 1.0))},
        }
        for step in range(1, 4)
    ]  # fmt: skip
    rows.append({"step": 3, "right_outcome_unseen": 0.5, "asked_unseen": 10})
    rows.append({"step": 3, "right_outcome_unseen": float("nan"), "asked_unseen": 0})
    written = run_figures(rows, tmp_path)
    names = [path.name for path in written]
    assert names == ["reward.png", "kl.png", "evaluations.png", "training.png"]
    assert run_figures([{"step": 1, "asked_seen": 3}], tmp_path) == []


def test_what_cannot_work_is_refused_in_one_sentence(
    run, data: Path, trained: Path, world: str, tmp_path: Path
) -> None:
    other = tmp_path / "memory"
    assert run("train", "memory", "--database", world, *TINY, "--out", other)[0] == 0
    many = shutil.copytree(data, tmp_path / "many")
    calls = (Step("calculator", {"expression": "1 + 1"}),) * 2
    several = Sample("both", "own", "multi_turn", "Twice?", calls, "2")
    write_samples([several], many / "validation.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        (("train", "--data", empty), "There is no train.jsonl in"),
        (("train", "--data", data, "--max-length", 30), "shorter than the longest dialogue"),
        (("sft", "--data", empty, "--model", "smollm-135m"), "There is no train.jsonl in"),
        (("sft", "--data", data, "--model", "no-model"), "There is no model 'no-model'"),
        (("eval", "expert"), "name their folder with --data"),
        (("eval", other), "has learnt from no samples"),
        (("eval", "./none"), "There is no model './none'"),
        (("eval", empty, "--data", data), "no trained model in"),
        (("eval", "expert", "--data", many), "Sample 'both' takes 3 turns, but max_turns is 1"),
        (("eval", trained, "--n", -1), "n is -1"),
        (("eval", trained, "--out", "table.txt"), "name a .csv file"),
        (("eval", "expert", "--data", data, "--every"), "holds no run with a checkpoint"),
        (("plot", empty), "holds no run"),
    ):
        out = ("--out", tmp_path / "x") if words[0] in ("train", "sft") else ()
        status, _, err = run("toolcall", *words, *out)
        assert (status, said in sentence(err)) == (2, True), err
    assert not (tmp_path / "x").exists()
