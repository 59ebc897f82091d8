"""The study of tool calling, small, and the commands of GRPO."""

import json

import pandas as pd
import pytest

from benchmarks.tool_calling import SIZES, ToolCallingConfig, _check_disjoint, tool_calling
from itl_agents.tool_metrics import METRICS
from itl_env import read_samples
from itl_env.generated import generate
from itl_env.tool_split import call_key

from .command_line import sentence

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "tool-calling"
    said = []
    tool_calling(ToolCallingConfig(out=out, n_threads=1), said.append)
    return out, "\n".join(said) + "\n"


def test_the_study_measures_before_and_after_and_says_what_steps_cost(study):
    out, printed = study
    rows = pd.read_csv(out / "results.csv")
    assert list(dict.fromkeys(rows["phase"])) == [
        "scratch", "scratch, longer numbers", "after GRPO, longer numbers", "after GRPO",
        "half-way, facts", "after GRPO, facts",
    ]  # fmt: skip
    shares = rows[rows["category"] != "facts"]
    for metric in METRICS:
        assert (shares[metric] == shares[f"{metric}_right"] / shares["n"]).all()
        assert (shares[f"{metric}_low"] <= shares[metric]).all()
    for cost in json.loads((out / "results.json").read_text())["costs"]:
        spent = cost["generation"] + cost["tools"] + cost["update"]
        assert spent == pytest.approx(1.0)
    assert printed.strip() in (out / "report.md").read_text()
    assert "| half-way, facts | facts | 10 |" in printed
    for name in ("scratch", "hard-rl", "recall-rl"):
        assert (out / f"{name}-evaluations.png").read_bytes().startswith(b"\x89PNG")


def test_no_call_that_is_asked_has_been_trained_on(study):
    out, _ = study

    def calls(file):
        return {call_key(step) for sample in read_samples(out / file) for step in sample.steps}

    trained = calls("tasks/train.jsonl") | calls("hard/train.jsonl")
    asked = calls("tasks/validation.jsonl") | calls("hard/validation.jsonl")
    assert trained
    assert asked
    assert not trained & asked
    # Some of the longer numbers are among the samples that the first model learns from.
    hard = {sample.id for sample in read_samples(out / "hard/train.jsonl")}
    shown = {sample.id for sample in read_samples(out / "tasks/train.jsonl")} & hard
    assert len(shown) == SIZES["smoke"].n_hard_shown


def test_parts_that_share_a_call_are_no_parts():
    one, other = generate(2, 0, categories=("calculator",))
    _check_disjoint({"train": [one], "validation": [other]})
    with pytest.raises(AssertionError, match="a call that is asked is trained on"):
        _check_disjoint({"train": [one, other], "validation": [other._replace(id="again")]})


def test_a_study_goes_on_and_other_settings_need_another_folder(study, run):
    out, printed = study
    command = (
        "bench",
        "run",
        "tool-calling",
        "--preset",
        "smoke",
        "--n-threads",
        "1",
        "--out",
        out,
    )
    again = run(*command)
    assert again[:2] == (0, printed)
    status, _, err = run(*command, "--seed", "1")
    assert status == 2
    assert "holds a study of other settings" in sentence(err)


def test_grpo_by_its_commands(study, run, tmp_path):
    out, _ = study
    common = (
        *("--n-steps", "2", "--n-generations", "2", "--batch-size", "4", "--max-new-tokens", "8"),
        *("--steps-per-generation", "1", "--n-evaluate", "4", "--n-threads", "1"),
    )
    tools = ("toolcall", "rl", "--model", out / "scratch", "--data", out / "hard", *common)
    status, printed, err = run(*tools, "--out", tmp_path / "tools")
    assert status == 0, err
    assert "right outcomes" in printed
    # The prompts are those of the run that the model comes from.
    assert "instruction: ''" in (tmp_path / "tools" / "config.yaml").read_text()
    status, printed, err = run(*tools, "--out", tmp_path / "tools")
    assert status == 0, err
    assert "is finished; this is its result" in printed
    status, printed, err = run(
        "train", "rl", "--model", out / "half", "--database", out / "world.db", *common,
        "--n-people", "20", "--n-unseen", "10", "--out", tmp_path / "facts",
    )  # fmt: skip
    assert status == 0, err
    assert "recall" in printed
    status, _, err = run(*tools, "--n-generations", "3", "--out", tmp_path / "other")
    assert status == 2
    assert "no whole number of groups of 3" in sentence(err)
