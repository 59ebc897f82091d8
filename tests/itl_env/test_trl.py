"""The tasks behind TRL's `environment_factory`: an episode there is an episode here."""

import json

import pytest
from transformers.utils import get_json_schema

from itl_agents import rollout
from itl_agents.chat_template import TOOL
from itl_agents.native_tools import turn_of
from itl_env import FactDatabase, RecallTask, ToolCallTask
from itl_env.actions import call_turn, final_turn
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.generated import generate
from itl_env.tools import Calculator
from itl_env.trl import environment_factory, replay, turns_of


def played_by_trl(shell, turns: list[tuple[str, str]]) -> list[dict]:
    """The messages of a completion, in which TRL makes the calls of the shell.

    turns: texts, each with its kind: a `query` is a call, whose reply is shown but for the last.
    """
    messages = []
    for place, (text, kind) in enumerate(turns):
        messages.append({"role": "assistant", "content": text, "kind": kind})
        if kind == "answer":
            break
        function = {"name": "turn", "arguments": {"text": text}}
        messages[-1]["tool_calls"] = [{"type": "function", "function": function}]
        if place < len(turns) - 1:
            messages.append({"role": "tool", "content": shell.turn(**function["arguments"])})
    return messages


class Marked:
    """An agent that says whether its turns are calls, as a NanoLlama does."""

    name = "marked"

    def __init__(self, turns: list[tuple[str, str]]) -> None:
        self.turns = turns

    def respond(self, conversations):
        return [Completion(*self.turns[len(talk.completions)][:1], kind=self.turns[
            len(talk.completions)][1]) for talk in conversations]  # fmt: skip


@pytest.mark.parametrize(
    "turns",
    [
        [("FIND birth_date FOR {name}", "query"), ("{value}", "answer")],
        [("FIND birth_date FOR Nobody", "query"), ("I do not know.", "answer")],
        [("FIND nothing", "query"), ("FIND birth_date FOR {name}", "query")],
        [("Ann was born", "query"), ("{value}", "answer")],
        [("FIND birth_date FOR {name}", "answer")],
        [("{value}", "answer")],
    ],
)
def test_an_episode_of_facts_is_the_same_behind_trl(world, turns):
    task = RecallTask(FactDatabase(world))
    fact = task.fact(0)
    said = [(text.format(name=fact.name, value=fact.value), kind) for text, kind in turns]
    (episode,) = rollout(Marked(said), task, [fact])
    shell = environment_factory(task, [fact], "text")()
    assert shell.reset(index=0, prompt="passed over") is None
    messages = played_by_trl(shell, said)
    (reply,) = replay(task, [fact], [turns_of(task, messages, "text")])
    assert reply.state.messages == episode.messages
    assert (reply.reward, reply.rewards) == (episode.reward, episode.rewards)


def test_a_call_after_the_end_of_an_episode_is_refused(world):
    task = RecallTask(FactDatabase(world))
    shell = environment_factory(task, [task.fact(0)])()
    shell.reset(index=0)
    shell.find("birth_date", "Nobody")
    shell.find("birth_date", "Nobody")
    with pytest.raises(ValueError, match="the episode is over"):
        shell.find("birth_date", "Nobody")


def native(*turns: object) -> list[dict]:
    """A completion of native calls, each (name, arguments), and of answers."""
    messages = []
    for turn in turns:
        said = {"role": "assistant", "content": "" if isinstance(turn, tuple) else turn}
        if isinstance(turn, tuple):
            function = {"name": turn[0], "arguments": turn[1]}
            said["tool_calls"] = [{"type": "function", "function": function}]
        messages += [said, {"role": "tool", "content": "what TRL has shown"}]
    return messages


def test_of_several_calls_in_one_message_the_first_counts():
    (sample,) = generate(1, 1, categories=("calculator",))
    task = ToolCallTask([sample], max_turns=2)
    (message, *_) = native(("calculator", {"expression": "1 + 1"}))
    second = {"function": {"name": "calculator", "arguments": {"expression": "2 + 2"}}}
    message["tool_calls"].append({"type": "function", **second})
    ((action, _),) = turns_of(task, [message], "native")
    assert action.args == {"expression": "1 + 1"}
    text = "".join(
        f"<tool_call>{json.dumps(call['function'])}</tool_call>" for call in message["tool_calls"]
    )
    assert task.parse(turn_of(text)) == action


@pytest.mark.parametrize("rubric", ["outcome", "classic"])
@pytest.mark.parametrize("calls", ["text", "native"])
def test_trl_pays_for_several_turns_what_the_rubric_pays(calls, rubric):
    (sample,) = generate(1, 1, categories=("multi_turn",))
    task = ToolCallTask([sample], max_turns=4, rubric=rubric)
    steps = [(step.tool, dict(step.args)) for step in sample.steps]
    answer = sample.expected_answer
    for turns in (
        [*steps, answer],
        [answer],
        steps,  # never answered
        steps[:1],  # cut after a call
        [("abacus", {"x": "1"}), answer],
        [("calculator", {"formula": "1"}), answer],
        [("calculator", {"expression": "1 / 0"}), *steps, answer],
        [("python", {"code": "print(1)"})] * 4,  # the last of which TRL does not run
    ):
        said = [call_turn(*turn) if isinstance(turn, tuple) else final_turn(turn) for turn in turns]
        if calls == "native":
            messages = native(*turns)
        else:
            messages = [{"role": "assistant", "content": text} for text in said]
        (reply,) = replay(task, [sample], [turns_of(task, messages, calls)])
        (state,) = task.start([sample])
        for text in said:
            (expected,) = task.advance([state], [task.parse(text)], [text])
            state = expected.state
        assert reply.state.turns == state.turns
        assert reply.rewards == task.rubric(state).parts
        weighted = sum(part.weight * reply.rewards[part.name] for part in task.rubric.components)
        assert reply.reward == pytest.approx(weighted)


def test_native_shells_have_the_tools_of_their_task_and_nothing_else(world):
    def public(shell):
        return sorted(name for name in dir(shell) if not name.startswith("_"))

    recall = RecallTask(FactDatabase(world))
    facts = environment_factory(recall, [recall.fact(0)])()
    assert public(facts) == ["find", "reset"]
    # What TRL tells of the tool is what models are trained under, but for what it returns.
    told = get_json_schema(facts.find)["function"]
    assert told.pop("return") == {"type": "string"}
    assert told == TOOL["function"]
    samples = list(generate(2, 1, categories=("multi_turn",)))
    task = ToolCallTask(samples, max_turns=4)
    shell = environment_factory(task, samples)()
    assert public(shell) == ["calculator", "python", "reset"]
    for name in task.tools:
        given = get_json_schema(getattr(shell, name))["function"]
        assert tuple(given["parameters"]["properties"]) == task.tools[name].parameters
    shell.reset(index=1)
    shown = [shell.calculator(step.args["expression"]) for step in samples[1].steps]
    assert shown[-1] == samples[1].expected_answer
    facts.reset(index=0)
    assert facts.find("birth_date", recall.fact(0).name) == recall.fact(0).value


def test_tools_without_a_native_form_are_refused(world):
    with pytest.raises(ConfigError, match="take the lookup dialect"):
        environment_factory(RecallTask(FactDatabase(world), max_queries=0), [])
    task = ToolCallTask(generate(1, 1, categories=("calculator",)))
    task.tools["abacus"] = Calculator()
    with pytest.raises(ConfigError, match="The tool 'abacus' has no native form"):
        environment_factory(task, [])
