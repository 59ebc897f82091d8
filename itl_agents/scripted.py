"""Agents without weights: the expert whose episodes are training data, and two baselines."""

from collections.abc import Mapping, Sequence

import numpy as np

from itl_agents.agent import Conversation
from itl_env import streams
from itl_env.dialogue import ERROR_PREFIX, NO_RESULT, Phrasing
from itl_env.episode import Completion
from itl_env.facts import Fact
from itl_env.recall import RecallTask

UNKNOWN = "I do not know."


def read_question(phrasings: Mapping[str, Phrasing], question: str) -> tuple[str, str] | None:
    """The (attribute, name) a question asks about; None if none of the phrasings fits.

    Where several wordings fit ("What is the mayor of the capital of Peru?"), the one with the most
    fixed text wins, as the name is then the shortest.
    """
    readings = [
        (len(name), attribute, name)
        for attribute, words in phrasings.items()
        if (name := words.name_in(question)) is not None
    ]
    if not readings:
        return None
    _, attribute, name = min(readings)
    return attribute, name


class ExpertAgent:
    """Plays the task without a mistake: it reads the question, queries if it may, then answers.

    In the in-weight setting it answers from the database it holds, as a model that has memorised
    it would. What it cannot know it says it does not know.
    """

    name = "expert"

    def __init__(self, task: RecallTask) -> None:
        self.task = task

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        asked = [
            read_question(self.task.phrasings, talk.messages[0].content) for talk in conversations
        ]
        values = self._values(conversations, asked)
        completions = []
        for talk, question, value in zip(conversations, asked, values, strict=True):
            may_query = self.task.max_queries > 0 and len(talk.messages) == 1
            if question is not None and value is not None:
                attribute, name = question
                text = self.task.statement(Fact(name, attribute, value))
                completions.append(Completion(text, kind="answer"))
            elif question is not None and may_query:
                completions.append(Completion(self.task.call(*question), kind="query"))
            else:
                completions.append(Completion(UNKNOWN, kind="answer"))
        return completions

    def _values(
        self, conversations: Sequence[Conversation], asked: list[tuple[str, str] | None]
    ) -> list[str | None]:
        """What each lane knows: the reply to its query, or without a tool what is stored."""
        if self.task.max_queries == 0:
            known = self.task.database.lookup(
                [(pair[1], pair[0]) for pair in asked if pair is not None]
            )
            found = iter(known)
            return [None if pair is None else next(found) for pair in asked]
        return [_replied(talk) for talk in conversations]


def _replied(talk: Conversation) -> str | None:
    """The value in the database's reply; None if there is none, or it holds none."""
    role, text = talk.messages[-1]
    found = role == "database" and text != NO_RESULT and not text.startswith(ERROR_PREFIX)
    return text if found else None


class NoToolAgent:
    """Answers at once without the tool, always with each attribute's most frequent value.

    It is what an in-weight model can do about people it has never seen.

    fitted_on: the task whose first `sample` people the frequencies are taken from; by default the
        one that is played, which is fair only where other people are asked about.
    """

    name = "no-tool"

    def __init__(
        self, task: RecallTask, fitted_on: RecallTask | None = None, sample: int = 1000
    ) -> None:
        self.task = task
        source = fitted_on or task
        stop = min(source.keys.stop, source.keys.start + sample)
        counts: dict[str, dict[str, int]] = {attribute: {} for attribute in task.attributes}
        for fact in source.database.facts(source.keys.start, stop, task.attributes):
            seen = counts[fact.attribute]
            seen[fact.value] = seen.get(fact.value, 0) + 1
        self.guesses = {name: max(seen, key=lambda v: seen[v]) for name, seen in counts.items()}

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        completions = []
        for talk in conversations:
            question = read_question(self.task.phrasings, talk.messages[0].content)
            text = UNKNOWN if question is None else self.guesses[question[0]]
            completions.append(Completion(text, kind="answer"))
        return completions


class RandomAgent:
    """Queries or answers by chance, about people and with values drawn from the database."""

    name = "random"

    def __init__(self, task: RecallTask) -> None:
        self.task = task

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        task = self.task
        seeds = np.array([talk.seed for talk in conversations], dtype=np.uint64)
        draw = streams.key(0, "random agent")
        query = streams.bernoulli(draw, seeds, 0.5)
        rows = streams.uniform_index(streams.key(0, "random fact"), seeds, task.n_facts)
        completions = []
        for is_query, fact in zip(query.tolist(), task.facts_at(rows.tolist()), strict=True):
            if is_query:
                call = task.call(fact.attribute, fact.name)
                completions.append(Completion(call, kind="query"))
            else:
                completions.append(Completion(fact.value, kind="answer"))
        return completions
