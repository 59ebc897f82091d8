"""Fine-tuning of pretrained models: small random ones, in real training by TRL."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.cli import main
from benchmarks.evaluation import Measured, RunEvaluation
from itl_agents import ExpertAgent, rollout
from itl_agents.chat_template import ChatTokenizer
from itl_agents.pretrained import load_pretrained
from itl_agents.render import IGNORED, render
from itl_env import FactDatabase, RecallTask
from itl_env.errors import ConfigError, ITLError
from itl_env.trivia import SAMPLE, create_trivia, read_trivia
from itl_train.checkpoint import check_whole, checkpoints
from itl_train.dataset import episodes_to_dataset
from itl_train.sft import SFTRun, SFTSettings, train_sft
from itl_train.sft_questions import Questions

from ..itl_agents.chat_models import chat_tokenizer

TIMED = ("tokens_per_s", "seconds", "memory_mb")


def tiny_llama(folder: Path, family: str = "smollm") -> Path:
    """A random Llama with the tokenizer and chat template of a family, saved."""
    tokenizer = chat_tokenizer(family)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def small(world: str, llama: Path, **changes: object) -> SFTSettings:
    settings = SFTSettings(
        database=world, model=str(llama), mode="in-weight", n_facts=16, n_unseen=8, n_steps=12,
        batch_size=4, log_every=2, evaluate_every=1.5, n_evaluate=4, checkpoint_every=1.0,
        n_threads=1,
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def weights(out: Path) -> list[torch.Tensor]:
    return list(load_pretrained(checkpoints(out / "checkpoints")[-1]).model.state_dict().values())


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_all_weights_learn_a_few_facts(world: str, llama: Path, tmp_path: Path) -> None:
    settings = small(
        world, llama, lora_rank=0, lr=5e-3, n_facts=4, n_unseen=0, n_steps=150, evaluate_every=10.0,
        stop_at=1.0, checkpoint_every=500.0,
    )  # fmt: skip
    last = train_sft(settings, tmp_path)
    assert last["recall_seen"] == 1.0
    assert last["step"] < 150, "it stopped once it knew"
    (kept,) = checkpoints(tmp_path / "checkpoints")
    assert kept.name == f"step-{last['step']:07d}"
    run = SFTRun(settings, tmp_path)
    assert run.finished
    assert run.train() == last


def test_an_adapter_is_trained_and_its_base_is_not(world: str, llama: Path, tmp_path: Path) -> None:
    last = train_sft(small(world, llama, mode="in-tool"), tmp_path)
    found = rows(tmp_path)
    losses = [row["loss"] for row in found if "loss" in row]
    assert losses[-1] < losses[0]
    assert [row["step"] for row in found if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in found if "recall_seen" in row] == [6, 12]
    assert (last["asked_seen"], last["asked_unseen"]) == (4, 4)
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-0000004", "step-0000008", "step-0000012"]
    saved = checkpoints(tmp_path / "checkpoints")[-1]
    assert (saved / "adapter_model.safetensors").is_file()
    assert not (saved / "model.safetensors").exists()
    assert not (tmp_path / "checkpoints" / "README.md").exists(), "it would name no base"
    assert "trl" in json.loads((tmp_path / "versions.json").read_text())
    assert all(row["tokens_per_s"] > 0 for row in found if "loss" in row)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    world: str, llama: Path, tmp_path: Path, lora_rank: int
) -> None:
    settings = small(world, llama, lora_rank=lora_rank)
    train_sft(settings, tmp_path / "whole")

    def interrupt(row: dict) -> None:
        if row["step"] == 6 and "loss" in row:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_sft(settings, tmp_path / "broken", interrupt)
    run = SFTRun(settings, tmp_path / "broken")
    assert run.step == 7, "the step after which it was told to stop, and no other"
    run.train()
    pairs = zip(weights(tmp_path / "whole"), weights(tmp_path / "broken"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    timeless = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in found]
        for found in (rows(tmp_path / "whole"), rows(tmp_path / "broken"))
    ]
    for whole, broken in zip(*timeless, strict=True):
        if whole["step"] == 8 and "loss" in whole:  # a mean over the steps since step 7
            broken["loss"] = whole["loss"]
        assert broken == whole


def test_all_attributes_are_asked_for_alike(world: str, llama: Path) -> None:
    questions = Questions.open(small(world, llama, n_facts=1_000, n_unseen=400))
    assert questions.unseen is not None
    for task, n in ((questions.seen, 100), (questions.unseen, 100), (questions.seen, 300)):
        asked = questions.asked(task, n)
        assert len(set(asked)) == n
        assert asked == questions.asked(task, n), "the same every time"
        for attribute in task.attributes:
            assert sum(fact.attribute == attribute for fact in asked) == pytest.approx(
                n / 4, rel=0.5
            )
        assert len({fact.name for fact in asked}) > n / 2


def test_optimizers_are_kept_of_the_last_checkpoints_only(
    world: str, llama: Path, tmp_path: Path
) -> None:
    train_sft(small(world, llama), tmp_path)
    kept = checkpoints(tmp_path / "checkpoints")
    assert [(path / "optimizer.pt").exists() for path in kept] == [False, True, True]
    for path in kept:
        check_whole(path)


def test_what_cannot_be_launched_is_refused(
    world: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="without FSDP"):
        train_sft(small(world, llama), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_recorded_by_its_whole_path(
    world: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.parent)
    train_sft(small(world, llama, model=llama.name, n_steps=1), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"] == str(llama)
    load_pretrained(checkpoints(tmp_path / "checkpoints")[-1])


def test_a_broken_checkpoint_is_passed_over(world: str, llama: Path, tmp_path: Path) -> None:
    settings = small(world, llama)
    train_sft(settings, tmp_path)
    expected = weights(tmp_path)
    (checkpoints(tmp_path / "checkpoints")[-1] / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints" / "checkpoint-12").mkdir()  # left by a kill
    with pytest.warns(UserWarning, match="an earlier checkpoint is used"):
        run = SFTRun(settings, tmp_path)
    assert run.step == 8
    run.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path), expected, strict=True))
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*-*"))
    assert names == ["step-0000004", "step-0000008", "step-0000012"]


def test_a_run_whose_optimizer_is_gone_says_so(world: str, llama: Path, tmp_path: Path) -> None:
    settings = small(world, llama)
    train_sft(settings, tmp_path)
    first, *rest = checkpoints(tmp_path / "checkpoints")
    for path in rest:
        (path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{first.name} holds no optimizer any more"):
        SFTRun(settings, tmp_path)


def test_memory_that_is_full_is_told(
    world: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SFTRun(small(world, llama), tmp_path)
    step = run.trainer.training_step

    def full(*inputs: object, **settings: object) -> torch.Tensor:
        if run.trainer.state.global_step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(*inputs, **settings)

    monkeypatch.setattr(run.trainer, "training_step", full)
    with pytest.raises(ITLError, match=r"full after step 5; lower at_once .*step-0000004"):
        run.train()


@pytest.mark.parametrize(
    ("batch_size", "at_once", "n_processes", "found"),
    [
        (8, 8, 1, (8, 1)),
        (12, 8, 1, (6, 2)),
        (8, 2, 2, (2, 2)),
        (7, 4, 1, (1, 7)),
        (6, 8, 3, (2, 1)),
    ],
)
def test_a_batch_is_shared_in_equal_parts(
    batch_size: int, at_once: int, n_processes: int, found: tuple[int, int]
) -> None:
    settings = SFTSettings(database="", model="m", batch_size=batch_size, at_once=at_once)
    assert settings.accumulation(n_processes) == found
    with pytest.raises(ConfigError, match="which 5 processes cannot share"):
        settings.accumulation(5)


def test_a_loss_that_is_not_finite_names_the_step(world: str, llama: Path, tmp_path: Path) -> None:
    settings = small(world, llama, lora_rank=0, lr=1e30, clip=0.0, warmup=0.0)
    with pytest.raises(ITLError, match=r"loss is nan at step \d|not finite after step \d"):
        train_sft(settings, tmp_path)


ACCELERATE = (
    "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", "2",
)  # fmt: skip


def test_two_processes_take_the_steps_of_one(world: str, tmp_path: Path) -> None:
    # Of Qwen's dialogues some begin alike and some do not; a process must not wait for another.
    llama = tiny_llama(tmp_path / "llama", "qwen3")
    settings = [
        "--database", world, "--model", str(llama), "--mode", "in-weight", "--n-facts", "16",
        "--n-unseen", "8", "--n-steps", "6", "--lora-rank", "4", "--batch-size", "8", "--at-once",
        "2", "--log-every", "2", "--n-evaluate", "4", "--n-threads", "1",
    ]  # fmt: skip
    assert main(["train", "sft", *settings, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, *ACCELERATE, "-m", "benchmarks.cli", "train", "sft", *settings]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for alone, together in zip(one, two, strict=True):
        if "loss" in alone:
            assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
            assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n_facts": 18}, "n_facts is 18, which is no whole number of people with 4 facts each"),
        ({"n_facts": 4_000}, "holds 1,600 facts, fewer than 4,000 to train on"),
        ({"lr": 0.0}, "No learning rate was published"),
        ({"stop_at": 1.5}, "stop_at is 1.5; it must be from 0 to 1"),
        ({"stop_at": 0.5, "stop_on": "unseen", "n_unseen": 0}, "n_unseen is 0"),
        ({"device": "tpu"}, "Cannot train on device 'tpu'"),
        ({"lr": float("nan")}, "lr is nan; it must be finite"),
    ],
)
def test_contradictions_are_found_before_anything_is_written(
    world: str, llama: Path, tmp_path: Path, changes: dict, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        train_sft(small(world, llama, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_knows_no_tool_is_refused_in_tool(world: str, tmp_path: Path) -> None:
    gemma = tiny_llama(tmp_path / "gemma", "gemma")
    with pytest.raises(ConfigError, match="cannot show the tool's reply"):
        train_sft(small(world, gemma, mode="in-tool"), tmp_path / "run")
    train_sft(small(world, gemma, n_steps=1), tmp_path / "in-weight")


def test_a_dialogue_longer_than_the_model_is_refused(
    world: str, llama: Path, tmp_path: Path
) -> None:
    config = json.loads((llama / "config.json").read_text())
    short = tmp_path / "short"
    short.mkdir()
    for file in llama.iterdir():
        (short / file.name).write_bytes(file.read_bytes())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 50}))
    with pytest.raises(ConfigError, match="more than the 50 of the model"):
        train_sft(small(world, short), tmp_path / "run")


def test_episodes_train_in_trls_own_trainer(world: str, llama: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = load_pretrained(llama)
    task = RecallTask(FactDatabase(world), keys=slice(0, 4))
    episodes = list(rollout(ExpertAgent(task), task, task.facts()))
    dataset = episodes_to_dataset(episodes, tokenizer)
    chat = ChatTokenizer(tokenizer)
    assert dataset["labels"][:] == [render(episode, chat).labels for episode in episodes]
    arguments = SFTConfig(
        str(tmp_path), max_steps=2, use_cpu=True, bf16=False, report_to="none", logging_steps=1,
        per_device_train_batch_size=4, gradient_checkpointing=False, save_strategy="no",
        dataset_num_proc=None,
    )  # fmt: skip
    trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)
    assert len(trainer.train_dataset) == 16, "TRL has dropped none"
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    told = {tuple(t for t in row if t != IGNORED) for row in batch["labels"].tolist()}
    every = {tuple(t for t in row if t != IGNORED) for row in dataset["labels"]}
    assert len(told) == 4
    assert told <= every, "the labels are the renderer's"
    assert not torch.equal(model.lm_head.weight, load_pretrained(llama).model.lm_head.weight)


def test_an_episode_in_which_nothing_is_trained_is_refused(world: str, llama: Path) -> None:
    task = RecallTask(FactDatabase(world), keys=slice(0, 1))
    (first, *_) = rollout(ExpertAgent(task), task, task.facts())
    silent = dataclasses.replace(first, messages=first.messages[:1], completions=())
    with pytest.raises(ITLError, match="holds no assistant turn to train on"):
        episodes_to_dataset([first, silent], load_pretrained(llama).tokenizer)
    with pytest.raises(ITLError, match="no episodes"):
        episodes_to_dataset([], load_pretrained(llama).tokenizer)


@pytest.mark.parametrize("mode", ["in-weight", "in-tool"])
def test_trivia_is_trained_on_and_asked_with_its_aliases(
    llama: Path, tmp_path: Path, mode: str
) -> None:
    database = f"sqlite:///{tmp_path / 'trivia.db'}"
    assert create_trivia(database, read_trivia(SAMPLE)) == 24
    settings = small(
        database, llama, trivia=True, mode=mode, n_facts=16, n_unseen=8, n_steps=2, n_evaluate=16
    )
    last = train_sft(settings, tmp_path / "run")
    assert (last["asked_seen"], last["asked_unseen"]) == (16, 8)
    task = Questions.open(settings).seen
    assert any(episode.aliases for episode in rollout(ExpertAgent(task), task, task.facts()))
    evaluation = RunEvaluation(tmp_path / "run", Measured(n_seen=4, n_unseen=4))
    assert list(evaluation.run()["seen_asked"]) == [4, 4]
