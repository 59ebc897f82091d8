"""Commands on a model: train it, evaluate it and let it play."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.cli import main
from itl_agents.nanollama import NanoLlama, NanoLlamaConfig, save_model
from itl_env import FactDatabase, read_episodes
from itl_env.trivia import SAMPLE, read_trivia

from ..itl_train.test_sft import tiny_llama
from .command_line import TINY, sentence

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(world: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "memory", "--database", world, *TINY, "--out", str(out)]) == 0
    return out


def test_training_says_the_recall_and_goes_on_from_a_finished_run(run, trained, world) -> None:
    again = ("train", "memory", "--database", world, *TINY, "--out", trained)
    status, out, _ = run(*again)
    assert status == 0
    assert re.search(r"step 4: recall [\d.]+% \[.*\] on unseen people", out)
    assert len(FactDatabase(world)) == 400


def test_settings_come_from_a_file_and_flags_override_them(run, trained, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["n_steps"] == 4
    settings |= {"d_hidden": None, "n_steps": 3, "zero_residual": False}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    status, _, err = run("train", "memory", "--config", file, "--n-steps", 2, "--out", out)
    assert status == 0, err
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert used == settings | {"n_steps": 2}


def test_a_recipe_comes_first_and_flags_override_it(run, trained, world, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--recipe", "published", *TINY, "--batch-size", 4, "--out", out)
    status, _, err = run("train", "memory", "--database", world, *options)
    assert status == 0, err
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert {name: used[name] for name in ("optimizer", "schedule", "pad_to", "style")} == {
        "optimizer": "adamw",
        "schedule": "cosine",
        "pad_to": 257,
        "style": "fenced",
    }
    assert used["batch_size"] == 4
    assert used["n_steps"] == 4
    status, _, err = run("train", "memory", "--database", world, "--recipe", "slow")
    assert status == 2
    assert "slow" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_stepz: 3", "n_stepz"),
        ("[1, 2]", "mapping"),
        ("a: b: c", "line 1, is not YAML: mapping values are not allowed here."),
        (None, "Cann"),
    ],
)
def test_a_settings_file_that_is_wrong_is_named(run, tmp_path, text: str | None, said: str) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    status, _, err = run("train", "memory", f"--config={file}", "--out", tmp_path / "run")
    assert status == 2
    assert said in sentence(err)
    assert "settings.yaml" in err


def test_training_refuses_what_cannot_work(run, trained: Path, world: str, tmp_path: Path) -> None:
    base = ("train", "memory", "--database", world, *TINY)
    for options, said in (
        (("--out", trained, "--seed", 7), "seed=0, not 7"),
        (("--out", tmp_path / "new", "--n-people", 500), "holds 400 people"),
        (("--out", tmp_path / "new", "--device", "abacus"), "abacus"),
    ):
        status, _, err = run(*base, *options)
        assert status == 2
        assert said in sentence(err)
    status, _, err = run(*base, "--out", tmp_path / "new", "--d-model", 17)
    assert status == 2
    assert err.count("does not divide by n_heads") == 1
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_a_folder_of_something_else_alone(run, world: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    status, _, err = run("train", "memory", "--database", world, *TINY, "--out", tmp_path)
    assert status == 2
    assert "holds 'thesis.tex' but no run" in sentence(err)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_eval_asks_about_people_the_run_did_not_train_on(run, trained, world, tmp_path) -> None:
    out = tmp_path / "answers.jsonl"
    assert run("eval", trained, "--start", "-5")[0] == 2
    status, said, _ = run("eval", trained, "--n", 6, "--out", out)
    assert status == 0
    assert re.search(r"in-tool, people from index 8: recall [\d.]+% \[.*of 6 questions", said)
    assert said.count("it is") + said.count("right\n") == 3  # the sample answers
    with FactDatabase(world) as database:
        asked = [episode.fact.name for episode in read_episodes(out)]
        assert asked == list(database.names(8, 14))
    (checkpoint,) = (trained / "checkpoints").glob("step-*4")
    options = ("--mode", "in-weight", "--start", 0, "--n", 2, "--database", world)
    assert "in-weight, people from index 0" in run("eval", checkpoint, *options)[1]


def test_eval_asks_no_damaged_checkpoint(run, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    (weights,) = copy.glob("checkpoints/step-*4/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    status, said, err = run("eval", copy)
    assert status == 0
    assert "model.safetensors is not as it was written; an earlier checkpoint is used" in err
    assert "step-0000002" in said
    status, _, err = run("eval", weights.parent)
    assert status == 1
    assert "model.safetensors is not as it was written" in sentence(err)


def test_eval_refuses_fewer_than_no_samples(run, trained: Path) -> None:
    status, _, err = run("eval", trained, "--samples", -1)
    assert status == 2
    assert "samples is -1" in err


def test_eval_needs_a_model(run, tmp_path: Path, world: str) -> None:
    status, _, err = run("eval", tmp_path, "--database", world)
    assert status == 2
    assert "no trained model" in sentence(err)
    save_model(NanoLlama(NanoLlamaConfig(d_model=16, n_heads=2)), tmp_path)
    assert "name a database" in run("eval", tmp_path)[2]


def test_a_trained_model_plays_as_an_agent(run, trained: Path, world: str, tmp_path: Path) -> None:
    out = tmp_path / "episodes.jsonl"
    options = ("--agent", trained, "--n", 2, "--temperature", 0.5, "--out", out)
    assert run("rollout", "--database", world, *options)[0] == 0
    assert run("show", out)[1].count("episode ") == 2


def test_quickstart_runs_small(run, tmp_path: Path) -> None:
    sizes = ("--n-people", 3, "--n-unseen", 1, "--n-memorised", 1)
    sizes = (*sizes, "--n-steps", 3, "--n-twin-steps", 3)
    status, out, err = run("quickstart", "--out", tmp_path / "quick", *sizes)
    assert status == 0
    assert "| in-tool | never seen |" in out
    assert "in-tool 3/3" in err
    assert (tmp_path / "quick/report.md").exists()


def test_a_path_that_is_not_here_is_not_looked_for_on_the_hub(
    run, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    rollout = ("rollout", "--agent", "runs/in-tol", "--out", tmp_path / "e.jsonl")
    for command in (("eval", "runs/in-tol"), rollout):
        status, _, err = run(*command, "--database", world)
        assert (status, sentence(err)) == (2, "itl: There is no runs/in-tol here.")
    status, _, err = run("eval", "runs/in-tol")
    assert (status, sentence(err)) == (2, "itl: There is no runs/in-tol here.")


def test_a_package_of_an_extra_that_is_missing_is_named(
    run, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    for module in ("itl_train.sft", "itl_train.fine_tune"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    out = ("--out", tmp_path / "run")
    status, _, err = run("train", "sft", "--database", world, "--model", "smollm-135m", *out)
    assert (status, sentence(err)) == (
        1, "itl: This needs the package trl; install itl[large-scale].",
    )  # fmt: skip


def test_a_pretrained_model_is_fine_tuned_and_asked(run, world: str, tmp_path: Path) -> None:
    llama, out = tiny_llama(tmp_path / "llama"), tmp_path / "run"
    command = (
        "train", "sft", "--database", world, "--model", llama, "--n-facts", "8", "--n-unseen", "4",
        "--n-steps", "2", "--n-evaluate", "2", "--out", out,
    )  # fmt: skip
    status, said, _ = run(*command)
    assert status == 0
    assert f"the run is in {out}" in said
    assert "is finished" in run(*command)[1]
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["lora_rank"], settings["batch_size"]) == (16, 8)
    status, said, _ = run("eval", out, "--n", "4", "--samples", "1")
    assert status == 0
    assert "people from index 2" in said, "those that it was not trained on"
    status, _, err = run(*command, "--recipe", "published", "--lr", "1e-3")
    assert (status, "holds a run with" in sentence(err)) == (2, True)
    status, _, err = run(*command[:-1], tmp_path / "x", "--recipe", "published")
    assert (status, "No learning rate was published" in sentence(err)) == (2, True)
    status, _, err = run(*command[:-1], tmp_path / "x", "--n-facts", "3")
    assert (status, "no whole number of people" in sentence(err)) == (2, True)


def test_a_run_on_trivia_is_asked_trivia(run, tmp_path: Path) -> None:
    database, out = f"sqlite:///{tmp_path / 'trivia.db'}", tmp_path / "run"
    assert run("facts", "trivia", "--database", database)[0] == 0
    assert run(
        "train", "sft", "--trivia", "--database", database, "--model",
        tiny_llama(tmp_path / "llama"), "--n-facts", "8", "--n-unseen", "4", "--n-steps", "1",
        "--n-evaluate", "2", "--out", out,
    )[0] == 0  # fmt: skip
    episodes = tmp_path / "said.jsonl"
    status, said, _ = run("eval", out, "--n", "4", "--out", episodes)
    assert status == 0
    assert "people from index 8" in said
    asked = [episode.fact for episode in read_episodes(episodes)]
    assert [fact.attribute for fact in asked] == ["answer"] * 4
    assert asked[0].name == [each.question for each in read_trivia(SAMPLE)][8]
