"""Agents, and how they play: conversations in, completions out, episodes at the end.

>>> from itl_agents import ExpertAgent, rollout
>>> from itl_env import FactDatabase, RecallTask, people
>>> task = RecallTask(FactDatabase.create("sqlite://", people(3)))
>>> episodes = list(rollout(ExpertAgent(task), task, task.facts(), seed=0))
>>> len(episodes), sum(episode.reward for episode in episodes)
(12, 12.0)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from itl_env.dialogue import Message
from itl_env.episode import Completion, Episode
from itl_env.streams import bits, key
from itl_env.task import Task

Asked = TypeVar("Asked")


class Conversation(NamedTuple):
    """What an agent sees of one lane when it is its turn.

    messages: the dialogue so far; the last one is not the agent's.
    completions: the agent's own earlier turns in it.
    seed: for whatever the agent draws in this turn. It depends on the rollout's seed, the
        episode's index and the turn, not on the number of lanes.
    """

    messages: tuple[Message, ...]
    completions: tuple[Completion, ...]
    seed: int


class Agent(Protocol):
    """Anything that can take part in a dialogue."""

    @property
    def name(self) -> str:
        """What episodes call the agent."""
        ...

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """One completion for each conversation, in order."""
        ...


def rollout(
    agent: Agent,
    task: Task[Asked],
    asked: Iterable[Asked],
    *,
    seed: int = 0,
    lanes: int = 256,
    first: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
) -> Iterator[Episode]:
    """Play one episode for each fact or sample that is asked, and yield them in order.

    Episode i depends on (seed, i) and what is asked in it only, whatever the number of lanes: lanes
    are episodes played side by side, which leave as they end.

    asked: read as it is needed, `lanes` at a time.
    first: the index of the first episode, to go on with a rollout whose first ones are played.
    on_episode: called with each episode before it is yielded.

    Raises ValueError if `lanes` is not positive or the agent returns another number of
    completions than it was asked for, and EnvironmentFailure if the database or a tool fails.
    """
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; it must be at least 1.")
    for wave in _waves(asked, lanes):
        for episode in _play(agent, task, wave, seed, first):
            if on_episode is not None:
                on_episode(episode)
            yield episode
        first += len(wave)


def _play(
    agent: Agent, task: Task[Asked], asked: Sequence[Asked], seed: int, first: int
) -> list[Episode]:
    """Episodes first, first + 1, ... side by side."""
    states: list[Any] = list(task.start(asked))
    said: list[tuple[Completion, ...]] = [()] * len(states)
    episodes: list[Episode | None] = [None] * len(states)
    live = list(range(len(states)))
    n_turns = 0
    while live:
        seeds = bits(key(seed, "turn", n_turns), np.array(live) + first).tolist()
        completions = agent.respond(
            [
                Conversation(states[lane].messages, said[lane], lane_seed)
                for lane, lane_seed in zip(live, seeds, strict=True)
            ]
        )
        n_turns += 1
        if len(completions) != len(live):
            raise ValueError(
                f"{agent.name} gave {len(completions)} completions for {len(live)} conversations."
            )
        replies = task.advance(
            [states[lane] for lane in live],
            [task.read(completion) for completion in completions],
            [completion.text for completion in completions],
        )
        still = []
        for lane, completion, reply in zip(live, completions, replies, strict=True):
            states[lane] = reply.state
            said[lane] = (*said[lane], completion)
            if reply.done:
                episodes[lane] = task.episode(
                    reply, said[lane], index=first + lane, seed=seed, agent=agent.name
                )
            else:
                still.append(lane)
        live = still
    return [episode for episode in episodes if episode is not None]


def _waves(asked: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    remaining = iter(asked)
    while wave := list(islice(remaining, size)):
        yield wave
