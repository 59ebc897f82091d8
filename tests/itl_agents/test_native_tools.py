"""Models that call tools in their own way: what they are told, and what they write."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_agents import rollout
from itl_agents.native_tools import NativeToolAgent, turn_of
from itl_agents.tool_metrics import ToolCount
from itl_agents.tool_scripted import DirectAgent, ToolExpert
from itl_env import Final, ToolCall, ToolCallTask
from itl_env.actions import parse_json_turn
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.generated import generate

from ..itl_train.rl_models import qwen_folder
from .chat_models import chat_tokenizer


@pytest.fixture(scope="module")
def task():
    return ToolCallTask(generate(6, 1, categories=("multi_turn",)), max_turns=4, instruction="")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(qwen_folder(tmp_path_factory.mktemp("qwen")))


class Told(NativeToolAgent):
    """Says what a script says, and keeps what it has been told."""

    def respond(self, conversations):
        self.seen = [self._text(talk.messages) for talk in conversations]
        written = []
        for talk in conversations:
            step = len(talk.completions)
            sample = next(s for s in self.task.samples if s.prompt == talk.messages[0].content)
            text = sample.expected_answer
            if step < len(sample.steps):
                call = {"name": sample.steps[step].tool, "arguments": dict(sample.steps[step].args)}
                text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
            written.append(Completion(turn_of(text)))
        return written


def test_calls_and_replies_are_told_as_the_template_tells_them(model, task):
    agent = Told(model, chat_tokenizer("qwen3"), task)
    agent.task = task
    count = ToolCount()
    for episode in rollout(agent, task, task.samples):
        count.add(episode)
    assert count.counts == dict.fromkeys(count.counts, 6)
    text = agent.seen[0]
    assert '"name": "calculator"' in text
    assert text.count("<tool_response>") == text.count("</tool_call>") - 2 >= 2  # two explain


def test_a_random_model_plays_to_the_end(model, task):
    agent = NativeToolAgent(model, chat_tokenizer("qwen3"), task, max_new_tokens=8, batch_size=2)
    episodes = list(rollout(agent, task, task.samples[:3]))
    assert [episode.answer is None for episode in episodes] == [False] * 3
    short = NativeToolAgent(model, chat_tokenizer("qwen3"), task, max_new_tokens=4000)
    assert short.respond([]) == []
    (episode,) = rollout(short, task, task.samples[:1])
    assert {turn.finish_reason for turn in episode.completions} == {"error"}


def test_templates_that_tell_of_no_tools_are_refused(model, task):
    with pytest.raises(ConfigError, match="does not tell of tools"):
        NativeToolAgent(model, chat_tokenizer("smollm"), task)


@pytest.mark.parametrize(
    "arguments", ['{"expression": "\\ud800"}', '{"expression": "\\u0000"}', "[" * 990 + "]" * 990]
)
def test_calls_that_no_text_may_hold_are_answers(arguments):
    action = parse_json_turn(turn_of(f'{{"name": "calculator", "arguments": {arguments}}}'), 10**5)
    assert isinstance(action, Final)


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers(), max_size=2))
@settings(deadline=None)
def test_whatever_is_written_becomes_a_turn(text, arguments):
    assert isinstance(parse_json_turn(turn_of(text), 10**6), Final | ToolCall) or "\0" in text
    call = json.dumps({"name": text, "arguments": arguments})
    assert isinstance(parse_json_turn(turn_of(call), 10**6), Final | ToolCall)


def test_each_respect_is_counted_apart(task):
    def counts(agent):
        count = ToolCount()
        for episode in rollout(agent, task, task.samples):
            count.add(episode)
        return count.counts

    assert counts(ToolExpert(task)) == dict.fromkeys(ToolCount().counts, 6)
    assert counts(DirectAgent("7")) == {
        "valid_json": 6, "right_format": 0, "right_tool": 0, "right_args": 0, "right_outcome": 0,
    }  # fmt: skip

    class OneCall:
        """Does all in one expression, which is right, though not what was due."""

        name = "one call"

        def respond(self, conversations):
            said = []
            for talk in conversations:
                sample = next(s for s in task.samples if s.prompt == talk.messages[0].content)
                turn = {"tool": "calculator", "args": {"expression": f"{sample.expected_answer}*1"}}
                last = {"final": sample.expected_answer}
                said.append(Completion(json.dumps(last if talk.completions else turn)))
            return said

    assert counts(OneCall()) == {
        "valid_json": 6, "right_format": 6, "right_tool": 0, "right_args": 0, "right_outcome": 6,
    }  # fmt: skip
