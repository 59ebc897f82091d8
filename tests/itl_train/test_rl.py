"""GRPO in the environments: TRL pays what the rubric pays and plays what the task plays."""

import dataclasses
import json
import shutil
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from itl_agents import rollout
from itl_agents.chat_template import ChatTokenizer
from itl_agents.nanollama import ByteTokenizer
from itl_agents.pretrained import load_pretrained
from itl_agents.render import IGNORED, render
from itl_env import ToolCallTask, write_samples
from itl_env.dialogue import Message
from itl_env.episode import Completion
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.generated import generate
from itl_env.rubric import RUBRICS, Component, Rubric
from itl_env.samples import load_samples
from itl_env.tool_rubric import TOOL_RUBRICS
from itl_env.tools import Calculator
from itl_env.trl import environment_factory
from itl_train.checkpoint import checkpoints
from itl_train.models import begun_with
from itl_train.rl import RLRun, train_rl
from itl_train.rl_config import RecallRLSettings, ToolRLSettings
from itl_train.rl_rewards import Rewards
from itl_train.rl_trainer import EpisodeTrainer

from .rl_models import nano_folder, qwen_folder

SMALL = {
    "n_steps": 4, "n_generations": 4, "batch_size": 8, "steps_per_generation": 2, "log_every": 2,
    "evaluate_every": 100, "n_evaluate": 4, "checkpoint_every": 100, "max_new_tokens": 12,
    "lr": 1e-2, "n_threads": 1,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    return nano_folder(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return qwen_folder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    samples = list(generate(24, 3, categories=("calculator", "no_tool")))
    write_samples(samples[:16], folder / "train.jsonl")
    write_samples(samples[16:], folder / "validation.jsonl")
    return folder


def tool_settings(model: Path, data: Path, **changes) -> ToolRLSettings:
    return ToolRLSettings(model=str(model), data=str(data), instruction="", **(SMALL | changes))


def recall_settings(model: Path, world: str, **changes) -> RecallRLSettings:
    given = {"model": str(model), "database": world, "n_people": 8, "n_unseen": 4}
    return RecallRLSettings(**(given | SMALL | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(checkpoints(folder / "checkpoints")[-1])
    return {name: value.clone() for name, value in model.state_dict().items()}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Scripted:
    """An agent that says the same things in every conversation."""

    name = "scripted"

    def __init__(self, *turns: str) -> None:
        self.turns = turns

    def respond(self, conversations):
        return [Completion(self.turns[len(talk.completions)]) for talk in conversations]


@pytest.mark.parametrize("rubric", ["outcome", "classic"])
def test_trl_pays_for_a_single_turn_what_the_rubric_pays(nano, rubric):
    samples = list(generate(4, 1, categories=("calculator",)))
    task = ToolCallTask(samples, tools=[Calculator()], rubric=rubric, instruction="")
    chat = ChatTokenizer(load_pretrained(nano).tokenizer)
    turns = [
        task.expert_turn(samples[0], 0),
        "Well, " + task.expert_turn(samples[1], 0),
        '{"final": "7"}',
        '{"tool": "calculator"',
    ]
    rewards = Rewards(task, samples, chat, group=2)
    ids = [[*chat.encode(turn), chat.stop_ids[0]] for turn in turns]
    columns = [score(completion_ids=ids, index=[0, 1, 2, 3]) for score in rewards.functions()]
    assert [score.__name__ for score in rewards.functions()] == [
        component.name for component in task.rubric.components
    ]
    for place, (sample, turn) in enumerate(zip(samples, turns, strict=True)):
        (episode,) = rollout(Scripted(turn), task, [sample])
        assert [column[place] for column in columns] == list(episode.rewards.values())
        paid = sum(w * column[place] for w, column in zip(rewards.weights, columns, strict=True))
        assert paid == pytest.approx(episode.reward)
    seen = rewards.take()
    assert (len(seen.totals), seen.n_groups, seen.cut) == (4, 2, 0)


def test_a_tool_that_fails_is_nobodys_mistake(monkeypatch):
    (sample,) = generate(1, 1, categories=("multi_turn",))
    task = ToolCallTask([sample], tools=[Calculator()], max_turns=4)
    shell = environment_factory(task, [sample])()
    shell.reset(index=0)

    def fail(self, calls):
        raise EnvironmentFailure("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(Calculator, "run", fail)
        with pytest.raises(EnvironmentFailure):  # which TRL shows to the model
            shell.calculator("1 + 1")
    rewards = Rewards(task, [sample], ByteTokenizer(), 1, "native")
    with pytest.raises(EnvironmentFailure, match="the disk is gone"):
        rewards.functions()[0](
            completion_ids=[[1]],
            index=[0],
            environments=[shell],
            completions=[[{"role": "assistant", "content": "7"}]],
        )


def test_a_run_of_single_turns_tells_parts_and_kl_and_ends_in_a_model(nano, data, tmp_path):
    last = train_rl(tool_settings(nano, data), tmp_path / "run")
    assert last["step"] == 4
    first, *middle, end = rows(tmp_path / "run")
    assert (first["step"], end["step"]) == (0, 4)
    assert {"recall_unseen", "right_tool_unseen", "valid_json_seen"} <= set(end)
    told = middle[0]
    for part in ("form", "outcome"):
        low, mean, high = (told[f"reward/{part}/{which}"] for which in ("min", "mean", "max"))
        assert low <= mean <= high
    assert told["kl"] >= 0
    assert told["seconds"] == pytest.approx(
        told["generation_s"] + told["tools_s"] + told["update_s"]
    )
    assert told["groups_without_spread"] == 1.0
    assert told["cut_share"] > 0.5
    loaded = load_pretrained(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert loaded.tokenizer.chat_template == load_pretrained(nano).tokenizer.chat_template
    again = train_rl(tool_settings(nano, data), tmp_path / "run")
    assert again == last


def test_all_of_a_group_begin_alike_and_prompts_are_asked_once_an_epoch(nano, data, tmp_path):
    run = RLRun(tool_settings(nano, data, n_steps=16), tmp_path / "run")
    asked: list[list[int]] = []
    own = run.trainer.reward_funcs[0]

    def watched(**given):
        asked.append(given["index"])
        return own(**given)

    run.trainer.reward_funcs[0] = watched
    run.train()
    assert all(len(set(batch[i : i + 4])) == 1 for batch in asked for i in range(0, 16, 4))
    prompts = [index for batch in asked for index in batch[::4]]
    assert sorted(prompts[:16]) == list(range(16))
    assert prompts[:16] != prompts[16:]


def test_prompts_that_are_too_long_lose_their_left_part(nano, data, tmp_path, monkeypatch):
    asked: list[list[int]] = []
    own = EpisodeTrainer._write

    def watched(self, prompt_ids):
        asked.extend(prompt_ids)
        return own(self, prompt_ids)

    monkeypatch.setattr(EpisodeTrainer, "_write", watched)
    settings = {"instruction": "Write JSON. ", "n_steps": 2}
    for name, most in (("whole", 0), ("cut", 40)):
        given = {"model": str(nano), "data": str(data), **SMALL, **settings, "max_tokens": most}
        RLRun(ToolRLSettings(**given), tmp_path / name).train()
    whole, cut = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    room = 40 - SMALL["max_new_tokens"]
    assert len(whole) == len(cut) > 0
    assert any(len(ids) > room for ids in whole)
    for before, after in zip(whole, cut, strict=True):
        assert len(after) == min(len(before), room)
        assert after[0] == before[0]  # the mark of whose turn it is
        n_said = len(after) - 1
        assert after[1:] == before[-n_said:]


def paid_for(monkeypatch, score) -> None:
    """Pay for the text of the first turn instead of what it comes to."""
    rubric = Rubric((Component("text", 1.0, lambda seen: score(seen.messages[1].content)),))
    monkeypatch.setitem(TOOL_RUBRICS, "outcome", rubric)
    monkeypatch.setitem(RUBRICS, "exact", rubric)


def of_letters(text: str) -> float:
    """The share of small letters in a text."""
    return sum("a" <= each <= "z" for each in text) / max(len(text), 1)


def interrupt_after(run: RLRun, step: int) -> None:
    """Press Ctrl-C while a run takes a step."""
    own = run.trainer.callback_handler.on_step_end

    def interrupt(args, state, control):
        if state.global_step == step:
            signal.raise_signal(signal.SIGINT)
        return own(args, state, control)

    run.trainer.callback_handler.on_step_end = interrupt


@pytest.mark.parametrize(
    ("kind", "stop_at"),
    [("single", 1), ("single", 2), ("facts", 1), ("facts", 2), ("native facts", 1)],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    nano, qwen, data, world, tmp_path, monkeypatch, kind, stop_at
):
    paid_for(monkeypatch, of_letters)

    def settings():
        if kind == "single":
            return tool_settings(nano, data, max_new_tokens=6)
        if kind == "facts":
            return recall_settings(nano, world, max_new_tokens=6)
        return recall_settings(qwen, world, calls="native", max_new_tokens=6)

    train_rl(settings(), tmp_path / "whole")
    run = RLRun(settings(), tmp_path / "cut")
    interrupt_after(run, stop_at)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert [path.name for path in checkpoints(tmp_path / "cut" / "checkpoints")] == [
        f"step-{stop_at:07}"
    ]
    train_rl(settings(), tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    start = AutoModelForCausalLM.from_pretrained(qwen if "native" in kind else nano).state_dict()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not all(torch.equal(whole[name], start[name]) for name in whole)


def test_what_is_paid_for_becomes_more_frequent(nano, data, tmp_path, monkeypatch):
    paid_for(monkeypatch, of_letters)
    settings = tool_settings(nano, data, n_steps=24, batch_size=16, lr=2e-2, log_every=4)
    train_rl(settings, tmp_path / "run")
    told = [row["reward"] for row in rows(tmp_path / "run") if "reward" in row]
    assert told[-1] > told[0] + 0.2
    assert rows(tmp_path / "run")[-2]["kl"] > 0.01


class Guided(EpisodeTrainer):
    """Writes, in place of a random model, what a script says after each prompt."""

    script = staticmethod(lambda text: "")

    def _write(self, prompt_ids):
        tokenizer = self.processing_class
        texts = [self.script(tokenizer.decode(ids)) for ids in prompt_ids]
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def test_replies_are_shown_as_the_renderer_shows_them(nano, world, tmp_path, monkeypatch):
    monkeypatch.setattr("itl_train.rl.EpisodeTrainer", Guided)
    run = RLRun(recall_settings(nano, world, max_new_tokens=160), tmp_path / "run")
    task, chat = run.subject.task, run.chat

    def script(text: str) -> str:
        fact = next(fact for fact in run.subject.items if task.question(fact) in text)
        if "<|database|>" in text:
            return f"{task.statement(fact)}<|eod|>"
        return f"{task.call(fact.attribute, fact.name)}<|database|>"

    monkeypatch.setattr(Guided, "script", staticmethod(script))
    seen = []
    generate = run.trainer._generate

    def watched(prompts):
        seen.append(generate(prompts))
        return seen[-1]

    run.trainer._generate = watched
    run.train()
    prompt_ids, completion_ids, mask, *_ = seen[0]
    indices = [row["index"] for row in run.trainer.train_dataset][:4]
    for group, index in enumerate(indices):
        fact, place = run.subject.items[index], 4 * group
        turns = task.call(fact.attribute, fact.name), task.statement(fact)
        (episode,) = rollout(Scripted(*turns), task, [fact])
        rendered = render(episode, chat)
        assert rendered.input_ids == [*prompt_ids[place], *completion_ids[place]]
        trained = [label != IGNORED for label in rendered.labels][len(prompt_ids[place]) :]
        assert trained == [bool(each) for each in mask[place]]
    told = next(row for row in rows(tmp_path / "run") if "reward" in row)
    assert (told["reward"], told["groups_without_spread"]) == (1.0, 1.0)


@pytest.mark.parametrize("kind", ["facts", "tools"])
def test_models_that_call_tools_in_their_own_way_are_paid_for_it(
    qwen, world, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr("itl_train.rl.EpisodeTrainer", Guided)
    if kind == "facts":
        settings = recall_settings(qwen, world, calls="native", max_new_tokens=200)
    else:
        samples = list(generate(24, 3, categories=("multi_turn",)))
        write_samples(samples[:16], tmp_path / "train.jsonl")
        write_samples(samples[16:], tmp_path / "validation.jsonl")
        settings = tool_settings(
            qwen, tmp_path, calls="native", max_turns=4, max_new_tokens=300, n_evaluate=1
        )
    run = RLRun(settings, tmp_path / "run")
    task = run.subject.task

    def script(text: str) -> str:
        item = next(item for item in run.subject.items if task.question(item) in text)
        done = text.count("<tool_response>")
        if kind == "facts":
            calls = [("find", {"attribute": item.attribute, "name": item.name})]
            answer = item.value
        else:
            calls = [(step.tool, dict(step.args)) for step in item.steps]
            answer = item.expected_answer
        if done == len(calls):
            return f"{answer}<|im_end|>"
        call = json.dumps({"name": calls[done][0], "arguments": calls[done][1]})
        return f"<tool_call>\n{call}\n</tool_call><|im_end|>"

    monkeypatch.setattr(Guided, "script", staticmethod(script))
    run.train()
    told = next(row for row in rows(tmp_path / "run") if "reward" in row)
    assert (told["reward"], told["cut_share"]) == (1.0, 0.0)


def scripted(monkeypatch, settings, out: Path, script) -> tuple[RLRun, list[dict]]:
    """A run in which a script writes, trained to its end, and what TRL tells of its steps."""
    monkeypatch.setattr("itl_train.rl.EpisodeTrainer", Guided)
    run = RLRun(settings, out)
    monkeypatch.setattr(Guided, "script", staticmethod(partial(script, run)))
    told: list[dict] = []
    row = run.row
    run.row = lambda logs, *rest: told.append(logs) or row(logs, *rest)  # type: ignore[method-assign]
    run.train()
    return run, told


@pytest.mark.parametrize("rubric", ["outcome", "classic"])
def test_what_trl_adds_up_is_what_the_rubric_pays(nano, data, tmp_path, monkeypatch, rubric):
    said = iter(range(10**6))

    def script(run: RLRun, text: str) -> str:
        task = run.subject.task
        sample = next(sample for sample in task.samples if task.question(sample) in text)
        turn = task.expert_turn(sample, 0)
        return (turn, "Well, " + turn, turn[:-1], '{"final": ""}')[next(said) % 4] + "<|eod|>"

    settings = tool_settings(nano, data, rubric=rubric, n_steps=2, log_every=1, max_new_tokens=90)
    run, told = scripted(monkeypatch, settings, tmp_path / "run", script)
    ours = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert ours[0]["reward_std"] > 0
    assert ours[0]["reward"] == pytest.approx(told[0]["reward"], abs=1e-5)
    parts = {part.name: part.weight for part in run.subject.task.rubric.components}
    assert told[0]["reward"] == pytest.approx(
        sum(w * told[0][f"rewards/{name}/mean"] for name, w in parts.items()), abs=1e-5
    )


def test_settings_reach_the_trainer(nano, data, tmp_path):
    settings = tool_settings(
        nano, data, beta=0.3, epsilon=0.11, scale_rewards="none", temperature=0.7, lr=3e-3,
        clip=0.4, seed=5, batch_size=8, at_once=4,
    )  # fmt: skip
    given = RLRun(settings, tmp_path / "run").trainer.args
    assert (given.beta, given.epsilon, given.scale_rewards) == (0.3, 0.11, "none")
    assert (given.temperature, given.learning_rate, given.max_grad_norm) == (0.7, 3e-3, 0.4)
    assert (given.seed, given.num_generations, given.max_completion_length) == (5, 4, 12)
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps) == (4, 2)
    assert given.steps_per_generation == 4
    assert given.reward_weights == [0.1, 1.0]


@pytest.mark.parametrize("max_turns", [1, 4])
def test_the_time_of_tools_is_theirs(nano, data, tmp_path, monkeypatch, max_turns):
    own, seconds = Calculator.run, 0.02

    def slow(self, calls):
        time.sleep(seconds * len(calls))
        return own(self, calls)

    def script(run: RLRun, text: str) -> str:
        task = run.subject.task
        sample = next(sample for sample in task.samples if task.question(sample) in text)
        return task.expert_turn(sample, text.count("<|database|>")) + "<|database|>"

    monkeypatch.setattr(Calculator, "run", slow)
    settings = tool_settings(
        nano, data, n_steps=2, log_every=1, max_new_tokens=200, max_turns=max_turns, n_evaluate=1
    )
    scripted(monkeypatch, settings, tmp_path / "run", script)
    told = next(row for row in rows(tmp_path / "run") if "tools_s" in row)
    n_calls = sum(
        sample.tool_needed for sample in generate(24, 3, categories=("calculator", "no_tool"))
    )
    assert n_calls
    assert seconds * 2 < told["tools_s"] < 0.9 * told["seconds"]


def test_an_episode_whose_reply_finds_no_room_is_cut(nano, world, tmp_path, monkeypatch):
    def script(run: RLRun, text: str) -> str:
        task = run.subject.task
        fact = next(fact for fact in run.subject.items if task.question(fact) in text)
        if "<|database|>" in text:
            return f"{task.statement(fact)}<|eod|>"
        return f"{task.call(fact.attribute, fact.name)}<|database|>"

    settings = recall_settings(nano, world, max_new_tokens=36, n_steps=2, log_every=1)
    with pytest.warns(UserWarning, match="of the completions were cut at 36 tokens and earned no"):
        scripted(monkeypatch, settings, tmp_path / "run", script)
    told = next(row for row in rows(tmp_path / "run") if "reward" in row)
    assert told["cut_share"] == 1 - told["reward"] > 0.5


def test_a_run_goes_on_from_what_it_began_with(nano, data, tmp_path, monkeypatch):
    """Though its model's run has gone on since; with beta the reference is part of the loss."""
    paid_for(monkeypatch, of_letters)
    first = tmp_path / "first"
    train_rl(tool_settings(nano, data, checkpoint_every=2), first)
    later, hidden = first / "checkpoints" / "step-0000004", tmp_path / "later"
    later.rename(hidden)
    settings = tool_settings(first, data, beta=0.5, checkpoint_every=2)
    train_rl(settings, tmp_path / "whole")
    cut = RLRun(settings, tmp_path / "cut")
    interrupt_after(cut, 2)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    hidden.rename(later)
    train_rl(settings, tmp_path / "cut")
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert begun_with(tmp_path / "cut").endswith("first/checkpoints/step-0000002")


def test_a_run_is_not_gone_on_with_on_other_weights_or_samples(nano, data, tmp_path):
    model, samples = tmp_path / "model", tmp_path / "samples"
    shutil.copytree(nano, model)
    shutil.copytree(data, samples)
    settings = tool_settings(model, samples)
    RLRun(settings, tmp_path / "run")
    kept = load_samples(samples / "train.jsonl")
    write_samples(kept[:4], samples / "train.jsonl")
    with pytest.raises(ConfigError, match=r"began with other samples or facts than .*samples;"):
        RLRun(settings, tmp_path / "run")
    write_samples(kept, samples / "train.jsonl")
    RLRun(settings, tmp_path / "run")
    nano_folder(model, seed=1)
    with pytest.raises(ConfigError, match=r"began with other weights than .*model;"):
        RLRun(settings, tmp_path / "run")


def test_native_tools_are_told_of_under_a_system_message(qwen, tmp_path, monkeypatch):
    samples = list(generate(24, 3, categories=("multi_turn",)))
    write_samples(samples[:16], tmp_path / "train.jsonl")
    write_samples(samples[16:], tmp_path / "validation.jsonl")
    native = {"calls": "native", "max_turns": 4, "system": "Be exact."}
    asked: list[str] = []
    settings = tool_settings(qwen, tmp_path, n_steps=1, log_every=1, n_evaluate=1, **native)
    run, _ = scripted(
        monkeypatch,
        settings,
        tmp_path / "run",
        lambda run, text: asked.append(text) or "7<|im_end|>",
    )
    prompt = run.trainer.train_dataset[0]["prompt"]
    assert [turn["role"] for turn in prompt] == ["system", "user"]
    ids = run.agent(run.trainer.model).prompt_ids([Message("user", prompt[1]["content"])])
    assert asked[0] == run.tokenizer.decode(ids)
    assert "Be exact." in asked[0]
    with pytest.raises(ConfigError, match="cannot be cut: leave out max_tokens"):
        RLRun(tool_settings(qwen, tmp_path, max_tokens=60, **native), tmp_path / "cut")


def test_prompts_without_room_in_the_model_are_refused(qwen, data, tmp_path):
    given = {"instruction": "Answer. " * 900, "max_tokens": 9000}
    settings = dataclasses.replace(tool_settings(qwen, data), **given)
    with pytest.raises(ConfigError, match=r"The longest prompt has .* more than the 2,048 of the"):
        RLRun(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_makes_training_idle_is_said_loudly(nano, data, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_rl(tool_settings(nano, data), tmp_path / "run")
    told = [str(each.message) for each in caught]
    assert any("in 100% of the groups all completions earned the same" in each for each in told)
    assert any("of the completions were cut at 12 tokens and earned" in each for each in told)


def test_an_adapter_is_trained_on_a_copy_that_lasts(qwen, data, tmp_path, monkeypatch):
    paid_for(monkeypatch, of_letters)
    first = tmp_path / "first"
    train_rl(tool_settings(qwen, data, lora_rank=2, n_steps=2, lr=1.0), first)
    assert not (first / "start").exists()
    train_rl(tool_settings(first, data, n_steps=1, log_every=1), tmp_path / "second")
    assert (tmp_path / "second" / "start" / "config.json").is_file()
    told = next(row for row in rows(tmp_path / "second") if "kl" in row)
    assert told["kl"] < 1e-3  # with another reference it would be far from 0 at once


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_generations": 1}, "n_generations is 1; a group needs 2 completions or more"),
        ({"n_generations": 3}, "is 16, which is no whole number of groups of 3"),
        ({"calls": "native"}, "Native calls need a reply: set max_turns to 2 or more"),
        ({"max_tokens": 12}, "max_tokens is 12, which leaves no room for a question beside the 12"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"beta": -1.0}, "beta is -1.0; it must not be negative"),
        ({"data": "nowhere"}, "There is no train.jsonl in nowhere; `itl toolcall data` makes one"),
        ({"model": "./nowhere"}, "nowhere"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    nano, data, tmp_path, changes, told
):
    given = {"model": str(nano), "data": str(data), "instruction": "", **SMALL, **changes}
    with pytest.raises(ConfigError, match=told):
        train_rl(ToolRLSettings(**given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(nano, data, tmp_path):
    RLRun(tool_settings(nano, data), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds a run with lr=0\.01, not 0\.1"):
        RLRun(tool_settings(nano, data, lr=0.1), tmp_path / "run")
