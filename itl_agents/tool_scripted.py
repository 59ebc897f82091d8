"""Agents without weights that play tool calling: the expert whose episodes are training data, and a
baseline.
"""

from collections.abc import Sequence

from itl_agents.agent import Conversation
from itl_env.actions import final_turn
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.samples import Sample
from itl_env.tool_call import ToolCallTask


class ToolExpert:
    """Writes what each sample says is right; it knows a sample by its prompt.

    Raises ConfigError if two samples of the task that differ in what is right share a prompt.
    """

    name = "expert"

    def __init__(self, task: ToolCallTask) -> None:
        self.task = task
        self._by_question: dict[str, Sample] = {}
        for sample in task.samples:
            other = self._by_question.setdefault(task.question(sample), sample)
            if (other.steps, other.expected_answer) != (sample.steps, sample.expected_answer):
                raise ConfigError(
                    f"Samples {other.id!r} and {sample.id!r} have one prompt, but differ in what "
                    "is right; leave one of them out."
                )

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        return [self._turn(talk) for talk in conversations]

    def _turn(self, talk: Conversation) -> Completion:
        sample = self._by_question[talk.messages[0].content]
        return Completion(self.task.expert_turn(sample, len(talk.completions)))


class DirectAgent:
    """Never calls a tool: it answers every prompt with the same text."""

    name = "direct"

    def __init__(self, answer: str = "") -> None:
        self.answer = answer

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        return [Completion(final_turn(self.answer))] * len(conversations)
