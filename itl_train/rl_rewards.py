"""The parts of a task's rubric as reward functions of TRL: one for each, weighted as in the rubric.

The task is played once for all of them. What came of it is counted for the metrics.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from itl_agents.render import DialogueTokenizer
from itl_env.episode import Completion
from itl_env.task import Reply
from itl_env.trl import Calls, Shell, Turn, replay, turns_of

RewardFunction = Callable[..., list[float]]


@dataclass
class Seen:
    """What was seen since the last line of metrics.

    parts: values of each part of the reward. totals: their weighted sums, one a completion.
    cut: completions that did not end their turn or, of several turns, the episode.
    worthless: of these, those that earned nothing.
    tool_seconds: in the task, its tools and its rubric.
    """

    parts: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    n_groups: int = 0
    n_flat: int = 0  # groups whose rewards are all the same
    cut: int = 0
    worthless: int = 0
    tool_seconds: float = 0.0

    def row(self) -> dict[str, float]:
        """As columns of a metrics row; none if nothing was seen."""
        if not self.totals:
            return {}
        row = {"reward": float(np.mean(self.totals)), "reward_std": float(np.std(self.totals))}
        for part, values in self.parts.items():
            row |= {
                f"reward/{part}/mean": float(np.mean(values)),
                f"reward/{part}/min": min(values),
                f"reward/{part}/max": max(values),
            }
        return {
            **row,
            "groups_without_spread": self.n_flat / self.n_groups,
            "cut_share": self.cut / len(self.totals),
            "cut_and_worthless": self.worthless / len(self.totals),
        }


class Rewards:
    """Scores the completions of a generation batch.

    task, items: what is played; rows name items by their column `index`.
    chat: that reads completions. group: completions of one prompt.
    calls: how completions of several turns call tools; see `itl_env.trl`.
    """

    def __init__(
        self,
        task: Any,
        items: Sequence[Any],
        chat: DialogueTokenizer,
        group: int,
        calls: Calls = "text",
    ) -> None:
        self.task, self.items, self.chat, self.group = task, items, chat, group
        self.calls: Calls = calls
        self.seen = Seen()
        self._scored: list[list[int]] | None = None
        self._replies: list[Reply[Any]] = []

    @property
    def weights(self) -> list[float]:
        """Of the functions, in their order."""
        return [component.weight for component in self.task.rubric.components]

    def functions(self) -> list[RewardFunction]:
        """One for each part of the rubric, named as the part."""
        return [self._function(component.name) for component in self.task.rubric.components]

    def _function(self, part: str) -> RewardFunction:
        def score(
            completion_ids: list[list[int]],
            index: list[int],
            environments: Sequence[Shell[Any]] | None = None,
            completions: Sequence[Any] = (),
            **_: Any,
        ) -> list[float]:
            replies = self._play(completion_ids, index, environments, completions)
            return [reply.rewards[part] for reply in replies]

        score.__name__ = part
        return score

    def _play(
        self,
        completion_ids: list[list[int]],
        index: Sequence[int],
        environments: Sequence[Shell[Any]] | None,
        completions: Sequence[Any],
    ) -> list[Reply[Any]]:
        """How each completion's episode has ended; the same list is played once.

        Raises EnvironmentFailure if the database or a tool has failed, which is nobody's mistake.
        """
        if self._scored is completion_ids:
            return self._replies
        for shell in environments or ():
            self.seen.tool_seconds += shell._seconds
            shell._seconds = 0.0
            if shell._failure is not None:
                raise shell._failure
        began = time.perf_counter()
        if environments is None:
            turns = [self.text(ids) for ids in completion_ids]
            transcripts: list[list[Turn]] = [
                [(self.task.read(Completion(turn)), turn)] for turn in turns
            ]
        else:
            transcripts = [turns_of(self.task, said, self.calls) for said in completions]
        asked = [self.items[place] for place in index]
        self._replies = replay(self.task, asked, transcripts)
        self._scored = completion_ids
        self.seen.tool_seconds += time.perf_counter() - began
        self._count(completion_ids)
        return self._replies

    def text(self, ids: Sequence[int]) -> str:
        """A completion without the mark that ends it."""
        ended = bool(ids) and ids[-1] in self.chat.stop_ids
        return self.chat.decode(ids[:-1] if ended else ids)

    def _count(self, completion_ids: list[list[int]]) -> None:
        seen, stop = self.seen, self.chat.stop_ids
        totals = [reply.reward for reply in self._replies]
        seen.totals += totals
        for reply in self._replies:
            for part, value in reply.rewards.items():
                seen.parts.setdefault(part, []).append(value)
        for start in range(0, len(totals), self.group):
            seen.n_groups += 1
            seen.n_flat += len(set(totals[start : start + self.group])) == 1
        # A call whose reply has found no room ends in its own mark, but its episode has not ended.
        cut = [
            not ids or ids[-1] not in stop or not reply.done
            for ids, reply in zip(completion_ids, self._replies, strict=True)
        ]
        seen.cut += sum(cut)
        seen.worthless += sum(
            was_cut and total <= 0 for was_cut, total in zip(cut, totals, strict=True)
        )

    def take(self) -> Seen:
        """What was seen since this was last called."""
        seen, self.seen = self.seen, Seen()
        return seen
