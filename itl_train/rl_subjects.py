"""What GRPO runs ask: samples of tool calling, or facts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from itl_agents.agent import Agent
from itl_agents.evaluate import facts_to_ask, recall_row
from itl_env.database import FactDatabase
from itl_env.recall import RecallTask
from itl_train.people import seen_and_unseen
from itl_train.rl_config import RecallRLSettings, ToolRLSettings
from itl_train.tool_questions import ToolQuestions


def digest(task: Any, items: Sequence[Any]) -> str:
    """A hash of what is asked, in its order, and of what is right."""
    found = hashlib.blake2b(digest_size=16)
    for item in items:
        found.update(repr((task.question(item), item)).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


class RLSubject(Protocol):
    """What a run asks.

    task: what is played. items: the facts or samples to train on, and `question` their prompts.
    """

    @property
    def task(self) -> Any: ...
    @property
    def items(self) -> Sequence[Any]: ...
    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """Recall on at most n of what is trained on, and of what is not, for a metrics row."""
        ...


@dataclass(frozen=True)
class ToolSubject:
    """Samples of tool calling."""

    questions: ToolQuestions

    @classmethod
    def open(cls, settings: ToolRLSettings) -> "ToolSubject":
        """Read the samples; see `ToolQuestions.open` for what is raised."""
        return cls(
            ToolQuestions.open(
                settings.data,
                max_turns=settings.max_turns,
                instruction=settings.instruction,
                rubric=settings.rubric,
                database=settings.database,
            )
        )

    @property
    def task(self) -> Any:
        """See `RLSubject`."""
        return self.questions.seen

    @property
    def items(self) -> Sequence[Any]:
        """See `RLSubject`."""
        return self.questions.seen.samples

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """See `RLSubject.ask`."""
        return self.questions.ask(agent, n)


@dataclass(frozen=True)
class RecallSubject:
    """Facts that are to be looked up."""

    task: RecallTask
    unseen: RecallTask
    items: Sequence[Any]

    @classmethod
    def open(cls, settings: RecallRLSettings) -> "RecallSubject":
        """Open the database; raises ConfigError if it holds too few people."""
        database = FactDatabase(settings.database, table=settings.table, key=settings.key)
        seen, unseen = (
            RecallTask(database, keys=keys)
            for keys in seen_and_unseen(database, settings.n_people, settings.n_unseen)
        )
        return cls(seen, unseen, list(seen.facts()))

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """See `RLSubject.ask`."""
        tasks = {"seen": self.task, "unseen": self.unseen}
        return recall_row(
            agent, {who: (task, facts_to_ask(task, n)) for who, task in tasks.items()}
        )
