"""Hostile turns of tool calling: each gets a reply, and the episode goes on to its right answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from itl_env import FactDatabase, ToolCallTask, people
from itl_env.actions import ToolCall, call_turn, final_turn
from itl_env.executor import MontyExecutor
from itl_env.rubric import Rubric
from itl_env.samples import Sample, Step
from itl_env.tools import standard_tools

from .hostile_tools import CALCULATOR, FIND, MONTY, fill

SUM = Sample(
    "sum", "mine", "calculator", "What is 2 plus 3?",
    (Step("calculator", {"expression": "2 + 3"}),), "5", "number",
)  # fmt: skip
MAX_LENGTH = 12_000
# Of any code on a busy machine.
SLOW = {"time_limit", "memory_limit"}


@pytest.fixture
def task(tmp_path: Path) -> Iterator[ToolCallTask]:
    """A task with all tools over a database in a file, which is the same afterwards."""
    place = tmp_path / "facts.db"
    FactDatabase.create(place, people(50, seed=0)).close()
    before = place.read_bytes()
    executor = MontyExecutor(time_limit=0.2, memory_mb=32)
    task = ToolCallTask(
        [SUM],
        tools=standard_tools(FactDatabase(place), executor),
        max_turns=4,
        instruction="",
        max_length=MAX_LENGTH,
    )
    yield task
    task.close()
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]


def calls(tmp_path: Path) -> list[tuple[str, str, dict[str, str], set[str | None]]]:
    """What is written, the tool and the arguments it is meant for, and the codes that are right."""
    argument = {"calculator": ("calculator", "expression"), "monty": ("python", "code")}
    hostile = []
    for item in (*CALCULATOR, *MONTY):
        text = fill(item.text, canary=str(tmp_path / "facts.db"), folder=str(tmp_path))
        tool, name = argument[item.tool]
        right = {*item.codes, *SLOW}
        if "too_long" in right:  # the calculator looks at the length first, the task at the text
            right.add("invalid_text")
        hostile.append((text, tool, {name: text}, right))
    for attribute, name in FIND.values():
        args = {"attribute": attribute, "name": name}
        right = {None, "unknown_attribute", "invalid_text", "too_long"}
        hostile.append((f"FIND {attribute} FOR {name}", "find", args, right))
    return hostile


def test_the_episode_goes_on_to_its_right_answer(task: ToolCallTask, tmp_path: Path) -> None:
    hostile = calls(tmp_path)
    rounds = [
        [raw for raw, *_ in hostile],
        [call_turn(tool, args) for _, tool, args, _ in hostile],
        [call_turn("calculator", {"expression": "2 + 3"})] * len(hostile),
        [final_turn("5")] * len(hostile),
    ]
    states = task.start([SUM] * len(hostile))
    replied = []
    for turns in rounds:
        replies = task.advance(states, [task.parse(turn) for turn in turns], turns)
        states = [reply.state for reply in replies]
        replied.append(replies)
    for (raw, _, _, right), first, second, third, last in zip(hostile, *replied, strict=True):
        assert first.observation.startswith("error: "), raw[:80]
        assert first.error_code in ("no_json", "invalid_json", "wrong_form", "too_long",
                                    "invalid_text"), raw[:80]  # fmt: skip
        assert second.error_code in right, raw[:80]
        assert second.observation.startswith("error: ") == (second.error_code is not None), raw[:80]
        for reply in (first, second):
            assert (reply.done, reply.reward) == (False, 0.0)
            assert len(reply.observation) <= MAX_LENGTH + len("error: ")
        assert (third.observation, third.error_code) == ("5", None)
        assert (last.done, last.state.answer) == (True, "5")
        assert Rubric.outcome()(last.state).parts["outcome"] == 1.0


def test_names_are_looked_up_as_they_are_written(task: ToolCallTask) -> None:
    # Also past the JSON, which refuses what no database can store.
    storable = {
        name: args
        for name, args in FIND.items()
        if name not in ("nul", "surrogate", "attribute with nul")
    }
    actions = [ToolCall("find", {"attribute": a, "name": n}) for a, n in storable.values()]
    replies = task.advance(task.start([SUM] * len(actions)), actions)
    for (attribute, _), reply in zip(storable.values(), replies, strict=True):
        expected: tuple[str | None, str] = (None, "no result")
        if attribute != "birth_place":
            expected = ("unknown_attribute", "error: unknown attribute; there are birth_date, ")
        assert reply.error_code == expected[0]
        assert reply.observation.startswith(expected[1])
