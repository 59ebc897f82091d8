"""What every task is to those who play it: questions, actions, replies, an episode at the end."""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from itl_env.episode import Completion, Episode, package_versions

S = TypeVar("S")
Asked = TypeVar("Asked", contravariant=True)


class Reply(NamedTuple, Generic[S]):
    """What a task says to one action.

    state: where the episode stands now.
    observation: the environment's words; empty once the episode has ended by an answer.
    error_code: stable code of what was wrong with the action, or None.
    rewards: the parts of the reward, filled when the episode ends.
    """

    state: S
    observation: str
    reward: float
    done: bool
    error_code: str | None
    rewards: dict[str, float]


class Task(Protocol[Asked]):
    """A task is pure and batched: a state is a value, and any subset of lanes may be advanced."""

    def start(self, asked: Sequence[Asked], /) -> Sequence[Any]:
        """One state for each thing that is asked."""
        ...

    def read(self, completion: Completion, /) -> Any:
        """The action that a completion stands for; nothing that a model writes raises."""
        ...

    def advance(
        self, states: Sequence[Any], actions: Sequence[Any], turns: Sequence[str] | None = None, /
    ) -> Sequence[Reply[Any]]:
        """A reply to the action in each lane."""
        ...

    def episode(
        self,
        reply: Reply[Any],
        completions: Sequence[Completion],
        /,
        *,
        index: int = 0,
        seed: int = 0,
        agent: str = "",
    ) -> Episode:
        """The episode that ended with `reply`; raises ValueError if it has not ended."""
        ...


def episode_of(
    reply: Reply[Any],
    completions: Sequence[Completion],
    *,
    index: int,
    seed: int,
    agent: str,
    **more: Any,
) -> Episode:
    """The record of an episode that ended with `reply`.

    more: what only episodes of one task hold. Raises ValueError if it has not ended.
    """
    state = reply.state
    if state.stop_reason is None:
        raise ValueError("The episode has not ended.")
    return Episode(
        fact=state.fact,
        messages=state.messages,
        completions=tuple(completions),
        answer=state.answer,
        reward=reply.reward,
        rewards=reply.rewards,
        stop_reason=state.stop_reason,
        n_queries=state.n_queries,
        error=state.error,
        index=index,
        seed=seed,
        agent=agent,
        versions=package_versions(),
        **more,
    )
