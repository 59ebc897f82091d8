"""How much an agent recalls, counted through the task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from itl_agents.agent import Agent, rollout
from itl_env.episode import Episode, StopReason
from itl_env.facts import Fact
from itl_env.recall import RecallTask


@dataclass
class RecallCount:
    """Questions asked and answered exactly.

    by_attribute, by_person: the same two numbers for each attribute and each name; intervals are
        clustered by person where a person is asked more than once.
    n_queried: questions in which the agent sent at least one query, be it a refused one.
    n_errors: episodes with an error reply. n_unanswered: episodes that ended without an answer.
    """

    asked: int = 0
    right: int = 0
    by_attribute: dict[str, tuple[int, int]] = field(default_factory=dict)
    by_person: dict[str, tuple[int, int]] = field(default_factory=dict)
    n_queried: int = 0
    n_errors: int = 0
    n_unanswered: int = 0

    @property
    def recall(self) -> float:
        """Share of questions answered exactly; nan if none was asked."""
        return self.right / self.asked if self.asked else float("nan")

    def add(self, episode: Episode) -> None:
        """Count one episode."""
        right = int(episode.reward == 1.0)
        self.asked += 1
        self.right += right
        for counts, name in (
            (self.by_attribute, episode.fact.attribute),
            (self.by_person, episode.fact.name),
        ):
            asked, was_right = counts.get(name, (0, 0))
            counts[name] = (asked + 1, was_right + right)
        self.n_queried += episode.n_queries > 0
        self.n_errors += episode.error is not None
        self.n_unanswered += episode.stop_reason != StopReason.ANSWERED


def measure_recall(
    agent: Agent, task: RecallTask, facts: Iterable[Fact], *, seed: int = 0, lanes: int = 256
) -> RecallCount:
    """Ask every one of `facts` and count. The task's reward must be `exact`."""
    count = RecallCount()
    for episode in rollout(agent, task, facts, seed=seed, lanes=lanes):
        count.add(episode)
    return count


def recall_row(
    agent: Agent, asked: Mapping[str, tuple[RecallTask, Iterable[Fact]]]
) -> dict[str, Any]:
    """`recall_`, `asked_` and `right_` of each name's facts, for a metrics row."""
    row: dict[str, Any] = {}
    for name, (task, facts) in asked.items():
        count = measure_recall(agent, task, facts)
        row |= {f"recall_{name}": count.recall, f"asked_{name}": count.asked}
        row[f"right_{name}"] = count.right
    return row


def facts_to_ask(task: RecallTask, most: int) -> Iterable[Fact]:
    """Every fact of the task if there are at most `most`, else one of each of `most` people.

    So an evaluation of a few people does not hang on a few lucky answers.
    """
    return task.facts() if task.n_facts <= most else one_question_each(task, most)


def one_question_each(task: RecallTask, n_people: int) -> list[Fact]:
    """One fact of each of the task's first n people, attributes in turn; independent questions."""
    n_attributes = len(task.attributes)
    people = range(min(n_people, len(task.keys)))
    return task.facts_at([person * n_attributes + person % n_attributes for person in people])
