"""The benchmarks of ensembles and of growing worlds: what they report, never how fast it was."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import speedrun
from benchmarks.machine import cpu_name
from itl_agents.nanollama import ByteTokenizer
from itl_env import FactDatabase, RecallTask
from itl_train.batches import BatchPlan
from itl_train.sources import expert_dialogues

from .command_line import smoke

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ensembles_are_shown_to_train_the_same(run, tmp_path: Path) -> None:
    out = tmp_path / "ensembles"
    status, said, _ = run("bench", "run", "ensembles", "--preset", "smoke", "--out", out)
    assert status == 0
    assert (out / "ensembles.md").read_text() in said
    rows = json.loads((out / "ensembles.json").read_text())["rows"]
    assert [row["members"] for row in rows] == [1, 2]
    assert all(row["equal"] and row["ratio"] > 0 for row in rows)


def test_the_saved_state_does_not_grow_with_people(run, tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    status, said, _ = run("bench", "run", "scaling", "--preset", "smoke", "--out", out)
    assert status == 0
    assert (out / "scaling.md").read_text() in said
    few, many = json.loads((out / "scaling.json").read_text())["rows"]
    assert many["state_mb"] == pytest.approx(few["state_mb"], rel=0.001)
    assert many["dialogues_mb"] > 4 * few["dialogues_mb"]
    assert few["ratio"] == 1.0


@pytest.mark.parametrize("study", ["ensembles", "bounds", "speedrun"])
def test_a_device_that_is_not_here_is_one_sentence(run, tmp_path: Path, study: str) -> None:
    out = tmp_path / "out"
    status, _, said = run("bench", "run", study, "--device", "tpu", "--out", out)
    assert (status, said.splitlines()[-1][:35]) == (2, "itl: Cannot train on device 'tpu': ")
    assert not out.exists()


@pytest.mark.parametrize("study", ["ensembles", "scaling", "throughput"])
def test_a_negative_number_of_threads_is_one_sentence(run, tmp_path: Path, study: str) -> None:
    status, _, said = run("bench", "run", study, "--n-threads", "-1", "--out", tmp_path / "out")
    assert (status, said) == (2, "itl: n_threads is -1; it must not be negative.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("study", ["ensembles", "scaling"])
def test_a_place_that_cannot_be_written_is_one_sentence(run, tmp_path: Path, study: str) -> None:
    (tmp_path / "file").write_text("")
    status, _, said = run("bench", "run", study, "--preset", "smoke", "--out", tmp_path / "file")
    assert status == 1
    assert said.splitlines()[-1].startswith("itl: Cannot write to")


def test_a_speedrun_times_one_recipe_and_counts_the_others_steps(run, tmp_path: Path) -> None:
    out = tmp_path / "speedrun"
    command = smoke("speedrun", out)
    status, said, _ = run(*command)
    assert status == 0
    assert (out / "report.md").read_text() in said
    memory, tool = json.loads((out / "study.json").read_text())["goals"]
    assert memory["fast_reached"] == 1
    assert memory["fast_steps"][0] < 400, "it ended when it knew enough"
    assert tool["fast_reached"] == 0, "20 steps teach no tool"
    assert tool["fast_steps"] == [20]
    expected = memory["published_steps"][0] * memory["padded_ms"] / 1000 / memory["fast_seconds"][0]
    assert memory["ratio"] == pytest.approx(expected)
    assert cpu_name() in said
    assert "ratio" not in tool, "it never got there"
    rows = (out / "runs.csv").read_text()
    again = run(*command)
    assert again[0] == 0
    assert (out / "runs.csv").read_text() == rows, "nothing is trained again"

    # A timed run that was interrupted, so that there is no row, is not continued but begun anew.
    (timed,) = out.glob("fast-in-weight-*")
    (timed / "row.json").unlink()
    (weights,) = timed.glob("checkpoints/*/model.safetensors")
    before = weights.stat().st_ino, weights.stat().st_mtime_ns
    assert run(*command, "--only", "fast")[0] == 0
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) != before
    (counted,) = out.glob("published-in-weight-*")
    assert (counted / "row.json").exists()
    report = json.loads((out / "study.json").read_text())["goals"][0]
    assert report["published_steps"] == memory["published_steps"], "what is left out stays known"
    assert json.loads((out / "cells.json").read_text()).count(counted.name) == 1


@pytest.mark.parametrize(
    ("n_reached", "said"),
    [(3, "**20 [15, 30]"), (2, "**20 [15, 30]"), (1, "**>= 20 [15, 30]")],
)
def test_a_ratio_is_a_lower_bound_where_most_seeds_were_given_up(n_reached: int, said: str) -> None:
    goal = speedrun.PRESETS["laptop"].goals[0]
    common = {"goal": goal.name, "parameters": 8, "steps": 100}
    times = {
        "train_seconds": 1.0, "padded_ms": 200.0, "padded_ms_low": 150.0, "padded_ms_high": 300.0,
    }  # fmt: skip
    rows = [{**common, "recipe": "fast", "reached": True, **times}] * 3
    rows += [{**common, "recipe": "published", "reached": seed < n_reached} for seed in range(3)]
    result = speedrun.summary(goal, rows, 3)
    sizes = {"n_seeds": 3, "target": 0.95}
    whole = {"goals": [result], "sizes": sizes, "timed_on": ["one"], "notes": {goal.name: "Slow."}}
    text = speedrun.report(whole)
    assert said in text
    assert f"\n- {goal.name}: Slow.\n" in text


def test_a_time_on_one_device_is_none_on_another() -> None:
    preset = speedrun.PRESETS["laptop"]
    names = {
        recipe: {
            speedrun.cell(preset.goals[0], recipe, 0, preset, device).name
            for device in ("cpu", "cuda")
        }
        for recipe in ("fast", "published")
    }
    assert [len(names[recipe]) for recipe in ("fast", "published")] == [2, 1]


def test_padding_changes_no_step(world: str) -> None:
    """So the published recipe's steps may be counted in rows cut to their longest."""
    task = RecallTask(FactDatabase(world), keys=slice(0, 50), max_queries=0)
    dialogues = expert_dialogues(task, ByteTokenizer())
    cut, padded = (BatchPlan(dialogues, 16, seed=0, pad_to=pad_to) for pad_to in (1, 257))
    for step in (0, 40):
        assert torch.equal(cut.rows(step), padded.rows(step))
        narrow, wide = cut.batch(step), padded.batch(step)
        assert narrow.input_ids.shape[1] < wide.input_ids.shape[1] == 256
        assert torch.equal(narrow.targets, wide.targets)
