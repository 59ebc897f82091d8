"""How episodes of tool calling are counted: in each respect by itself."""

import pytest

from itl_agents.tool_metrics import METRICS, ToolCount, respects
from itl_env import ToolCallTask
from itl_env.episode import Completion
from itl_env.samples import Sample, Step
from itl_env.tools import Calculator

SUM = Sample(
    "sum", "mine", "calculator", "What is 2 plus 3?",
    (Step("calculator", {"expression": "2 + 3"}),), "5", "number",
)  # fmt: skip
DAY = Sample("day", "mine", "no_tool", "Which day comes after Monday?", (), "Tuesday")
CALL = '{"tool": "calculator", "args": {"expression": "%s"}}'


def episode(sample, *turns):
    """What is recorded of raw turns."""
    task = ToolCallTask([sample], tools=[Calculator()], max_turns=len(turns))
    (state,) = task.start([sample])
    for turn in turns:
        (reply,) = task.advance([state], [task.parse(turn)], [turn])
        state = reply.state
    return task.episode(reply, [Completion(turn) for turn in turns])


@pytest.mark.parametrize(
    ("sample", "turn", "right"),
    [
        (SUM, CALL % "3+2", {*METRICS}),
        (SUM, CALL % "2 * 3", {"valid_json", "right_format", "right_tool"}),
        (SUM, CALL.replace("calculator", "abacus") % "2 + 3", {"valid_json", "right_format"}),
        (SUM, '{"final": "5"}', {"valid_json"}),
        (SUM, "5", set()),
        (DAY, '{"final": "Tuesday"}', {*METRICS}),
        (DAY, '{"final": "Sunday"}', {*METRICS} - {"right_outcome"}),
        (DAY, CALL % "2 + 3", {"valid_json"}),
        # Nothing was called, as is right, but this is no answer in the form that was asked for.
        (DAY, "Tuesday", set()),
        (DAY, '{"answer": "Tuesday"}', set()),
    ],
)
def test_an_episode_is_right_in_some_respects(sample, turn, right):
    assert {name for name, is_right in respects(episode(sample, turn)).items() if is_right} == right


def test_one_turn_without_the_form_spoils_the_format_of_all():
    found = respects(episode(DAY, "Tuesday", '{"final": "Tuesday"}'))
    assert found == dict.fromkeys(METRICS, False) | {"right_outcome": True}


def test_counts_are_of_all_samples():
    count = ToolCount()
    for turn in ('{"final": "Tuesday"}', "Tuesday"):
        count.add(episode(DAY, turn))
    assert count.rate("right_format") == count.rate("right_outcome") == 0.5
