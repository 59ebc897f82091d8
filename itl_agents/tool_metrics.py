"""How well an agent calls tools, counted from its episodes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from itl_agents.agent import Agent, rollout
from itl_env.episode import Episode
from itl_env.samples import Sample
from itl_env.tool_call import ToolCallTask
from itl_env.tool_rubric import (
    has_form,
    has_right_tool,
    is_right_outcome,
    right_args,
    turns_and_due,
)

METRICS = ("valid_json", "right_format", "right_tool", "right_args", "right_outcome")


@dataclass
class ToolCount:
    """Samples that were asked, and in how many of them all turns were right in some respect.

    valid_json: an object of one of the forms. right_format: a call where one was due, an answer
    where one was. right_tool: the tool that was due, too. right_args: arguments that mean the same,
    too; where no tool is due, this is right_tool. right_outcome: see `is_right_outcome`.
    unsupported: episodes with code that the executor has no support for, which is nobody's mistake.
    """

    asked: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(METRICS, 0))
    unsupported: int = 0

    def add(self, episode: Episode) -> None:
        """Count one episode of tool calling."""
        self.asked += 1
        self.unsupported += any(turn.error == "unsupported" for turn in episode.turns)
        for name, right in respects(episode).items():
            self.counts[name] += right

    def rate(self, metric: str) -> float:
        """Share of the samples; nan if none was asked."""
        return self.counts[metric] / self.asked if self.asked else float("nan")


def respects(episode: Episode) -> dict[str, bool]:
    """In which respects all turns of an episode were right; see `ToolCount`."""
    sample = episode.sample
    assert sample is not None
    valid = has_form(episode) == 1.0
    answers_at_once = all(turn.call is None for turn in episode.turns)
    right_tool = has_right_tool(episode) == 0.5
    calls = [(turn, due) for turn, due in turns_and_due(episode) if due is not None]
    return {
        "valid_json": valid,
        "right_format": valid and answers_at_once != sample.tool_needed,
        "right_tool": right_tool,
        "right_args": right_tool and all(right_args(turn, due) for turn, due in calls),
        "right_outcome": is_right_outcome(episode) == 1.0,
    }


def measure_tool_calls(
    agent: Agent,
    task: ToolCallTask,
    samples: Iterable[Sample],
    *,
    seed: int = 0,
    lanes: int = 256,
) -> ToolCount:
    """Give the agent every one of the samples and count."""
    count = ToolCount()
    for episode in rollout(agent, task, samples, seed=seed, lanes=lanes):
        count.add(episode)
    return count


def tool_row(count: ToolCount, who: str) -> dict[str, Any]:
    """The counts as columns of a metrics row; `recall_` is the share of right outcomes."""
    row: dict[str, Any] = {
        f"recall_{who}": count.rate("right_outcome"),
        f"asked_{who}": count.asked,
        f"right_{who}": count.counts["right_outcome"],
        f"unsupported_{who}": count.unsupported,
    }
    return row | {f"{name}_{who}": count.rate(name) for name in METRICS}
