"""Does a database serve as an environment: is every gold call and answer worth exactly 1.0?

    itl validate --database sqlite:///facts.db

Every fact is played by the expert, with the tool and without it, from raw text alone, as any model
would write it. A value that cannot be said (one that is longer than a reply may be, say) or a name
that no query can hold (one with a line break in it) shows here, and not as a mysterious ceiling on
some model's recall. An agent that acts at random is then held to what guessing gets, which a rubric
that is too kind exceeds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import get_args

import numpy as np

from benchmarks.rollouts import quoted
from benchmarks.statistics import wilson
from itl_agents.agent import Agent, Conversation, rollout
from itl_agents.scripted import ExpertAgent, RandomAgent
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.dialogue import Dialect, Style
from itl_env.episode import Completion, Episode, StopReason
from itl_env.facts import Fact
from itl_env.recall import Mode, RecallTask, max_queries_of
from itl_env.rubric import normalise

MODES: tuple[Mode, ...] = get_args(Mode)
N_RANDOM = 4000  # questions the random agent is asked
LANES = 1024
# Random is refused only if chance would exceed it less than once in a million validations.
CONFIDENCE = 1 - 1e-6


@dataclass(frozen=True)
class Check:
    """One agent in one mode.

    right: episodes of the `asked` ones whose reward is 1.0. answered: those that ended in an
    answer. chance: the share of right answers that guessing gets, for the random agent.
    problem: what is wrong, in one sentence, or None.
    """

    mode: str
    agent: str
    asked: int
    right: int
    answered: int
    chance: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Validation:
    """What was found: four checks over `n_people` people with `n_attributes` facts each."""

    n_people: int
    n_attributes: int
    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        """What is wrong; empty if nothing is."""
        return [check.problem for check in self.checks if check.problem is not None]


class RawTextExpert(ExpertAgent):
    """The expert, whose turns carry no hint whether they are a call or an answer."""

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        return [Completion(turn.text) for turn in super().respond(conversations)]


def validate(
    database: FactDatabase,
    *,
    attributes: Sequence[str] | None = None,
    style: Style = "compact",
    dialect: Dialect = "lookup",
    keys: slice = slice(None),
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Validation:
    """Play every fact of the people at `keys` (all by default) and count; streamed.

    on_progress: called now and then with the number of expert episodes played, of two for each
        fact.

    Raises ConfigError for arguments that do not fit the database, and EnvironmentFailure if the
    database fails.
    """
    checks = []
    done = 0
    for mode in MODES:
        task = RecallTask(
            database,
            keys=keys,
            attributes=attributes,
            style=style,
            dialect=dialect,
            max_queries=max_queries_of(mode),
        )
        sample = _sample(task, seed)
        drawn = Counter[str]()  # how often each sampled value stands in the database
        wanted = {normalise(fact.value) for fact in sample}
        tally = _Tally(mode, "expert")
        for episode in rollout(RawTextExpert(task), task, task.facts(), seed=seed, lanes=LANES):
            tally.add(episode)
            value = normalise(episode.fact.value)
            if value in wanted:
                drawn[value] += 1
            done += 1
            if done % LANES == 0:
                on_progress(done)
        checks.append(tally.expert_check())
        chance = sum(drawn[normalise(fact.value)] for fact in sample) / len(sample) / task.n_facts
        checks.append(_random_check(mode, RandomAgent(task), task, sample, seed, chance))
    on_progress(done)
    return Validation(len(task.keys), len(task.attributes), tuple(checks))


def _sample(task: RecallTask, seed: int) -> list[Fact]:
    """Facts spread over the whole task, for the random agent; all of them if they are few."""
    if task.n_facts <= N_RANDOM:
        return list(islice(task.facts(), N_RANDOM))
    drawn = streams.uniform_index(
        streams.key(seed, "validate"), np.arange(N_RANDOM, dtype=np.uint64), task.n_facts
    )
    return task.facts_at(drawn.tolist())


class _Tally:
    """Counts episodes and keeps the first that went wrong."""

    def __init__(self, mode: str, agent: str) -> None:
        self.mode, self.agent = mode, agent
        self.asked = self.right = self.answered = 0
        self.first_wrong: Episode | None = None

    def add(self, episode: Episode) -> None:
        self.asked += 1
        self.answered += episode.stop_reason == StopReason.ANSWERED
        if episode.reward == 1.0:
            self.right += 1
        elif self.first_wrong is None:
            self.first_wrong = episode

    def expert_check(self) -> Check:
        problem = None
        if self.first_wrong is not None:
            problem = (
                f"{self.mode}: {self.asked - self.right:,} of {self.asked:,} gold episodes do not "
                f"score 1.0, first {_reason(self.first_wrong)}"
            )
        return Check(self.mode, self.agent, self.asked, self.right, self.answered, None, problem)


def _reason(episode: Episode) -> str:
    name, attribute, value = episode.fact
    what = f"{attribute} of {name!r}, {quoted(value)}"
    if episode.error is not None:
        return f"{what}: error {episode.error}"
    if episode.answer is None:
        return f"{what}: it ended without an answer"
    return f"{what}: it was answered {quoted(episode.answer)} and scored {episode.reward:g}"


def _random_check(
    mode: str, agent: Agent, task: RecallTask, sample: Sequence[Fact], seed: int, chance: float
) -> Check:
    """The random agent, which is right too often only if the rubric is too kind."""
    tally = _Tally(mode, agent.name)
    for episode in rollout(agent, task, sample, seed=seed, lanes=LANES):
        tally.add(episode)
    problem = None
    tries = max(tally.answered, tally.right)  # a rubric may pay even for silence
    if wilson(tally.right, tries, CONFIDENCE)[0] > chance:
        problem = (
            f"{mode}: answers at random score 1.0 in {tally.right:,} of {tries:,} cases, "
            f"where chance gets {100 * chance:.2f}%"
        )
    return Check(mode, agent.name, tally.asked, tally.right, tally.answered, chance, problem)


def table(validation: Validation) -> str:
    """The counts for a person to read."""
    lines = [f"{'mode':<10} {'agent':<7} {'asked':>10} {'scored 1.0':>10} {'share':>8}"]
    for check in validation.checks:
        line = (
            f"{check.mode:<10} {check.agent:<7} {check.asked:>10,} {check.right:>10,} "
            f"{100 * check.right / check.asked:>7.2f}%"
        )
        if check.chance is not None:
            share = check.right / check.answered if check.answered else 0.0
            line += f"  ({100 * share:.2f}% of its answers; chance gets {100 * check.chance:.2f}%)"
        lines.append(line)
    return "\n".join(lines)
