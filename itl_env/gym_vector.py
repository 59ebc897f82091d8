"""Fact recall in many lanes at once: `FactRecallVectorEnv`, which `gymnasium.make_vec` makes."""

from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any, Self, cast

import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from itl_env.episode import StopReason
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.gym_shared import (
    INFO,
    METADATA,
    begin,
    build_task,
    check_render_mode,
    dialogue_text,
    draw_facts,
    live_state,
    pinned_fact,
    read_action,
    reward_parts,
    spaces_of,
    warn_no_render,
)
from itl_env.recall import RecallTask, State
from itl_env.task import Reply
from itl_env.unicode_text import UnicodeText


class FactRecallVectorEnv(VectorEnv[tuple[str, ...], Any, np.ndarray]):
    """Many episodes of fact recall at once, with one database lookup a step for all of them.

    Lane i plays exactly the episodes that the i-th `FactRecallEnv` of a `SyncVectorEnv` would play,
    under the same seeds and in all three autoreset modes; see `FactRecallEnv` for spaces, rewards,
    infos and arguments. Here observations are tuples of strings and actions are
    `{"kind": (num_envs,) integers, "text": sequence of num_envs strings}`; a plain sequence of
    num_envs strings is taken as raw turns, as `TextActions` does.

    num_envs: lanes.
    autoreset_mode: "NextStep", "SameStep" or "Disabled", or the enum. In the last one, ended lanes
        are reset by `reset(options={"reset_mask": (num_envs,) booleans})`.

    ## Example

    >>> import gymnasium
    >>> from itl_env import FactDatabase, people
    >>> FactDatabase.create("sqlite:///many.db", people(100, seed=0)).close()
    >>> envs = gymnasium.make_vec(
    ...     "itl_env:ITL/FactRecall-v0", num_envs=2, database="sqlite:///many.db", max_queries=0
    ... )
    >>> questions, infos = envs.reset(seed=0)
    >>> answers = {"kind": [1, 1], "text": ["I do not know", "7/3/1984"]}
    >>> _, rewards, terminated, truncated, infos = envs.step(answers)
    >>> rewards, terminated
    (array([0., 0.]), array([ True,  True]))
    >>> envs.close()

    ## Version history

    * v0: first version.
    """

    single_observation_space: UnicodeText
    task: RecallTask
    replies: list[Reply[State] | None]
    """The last reply of each lane, with its state; None before the lane's first reset."""

    def __init__(
        self,
        database: str,
        *,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        mode = _check_vector(num_envs, autoreset_mode, render_mode)
        self._wrap(build_task(database, **arguments), num_envs, mode, render_mode, owned=True)

    @classmethod
    def from_task(
        cls,
        task: RecallTask,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> Self:
        """The environment of a task that exists already, which `close` leaves open."""
        mode = _check_vector(num_envs, autoreset_mode, render_mode)
        self = cls.__new__(cls)
        self._wrap(task, num_envs, mode, render_mode, owned=False)
        return self

    def _wrap(
        self,
        task: RecallTask,
        num_envs: int,
        mode: AutoresetMode,
        render_mode: str | None,
        owned: bool,
    ) -> None:
        self.task, self.num_envs, self.render_mode, self._owned = task, num_envs, render_mode, owned
        self.autoreset_mode = mode
        self.metadata = {**METADATA, "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = spaces_of(task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.replies = [None] * num_envs
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds = [-1] * num_envs

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Ask a fact in each lane, or in those of `options["reset_mask"]`.

        seed: lane i gets `seed + i`, or the i-th of a sequence.

        Raises ConfigError for options that it does not know.
        """
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"There are {len(seeds)} seeds for {self.num_envs} environments.")
        lanes = self._masked(options)
        fact = pinned_fact(self.task, options, known=("fact", "reset_mask"))
        for lane in lanes:
            if seeds[lane] is not None:
                self._generators[lane], self._seeds[lane] = seeding.np_random(seeds[lane])
        replies = list(self.replies)
        self._ask(replies, lanes, fact)
        self.replies = replies
        return self._observations(), self._infos(replies, lanes)

    def step(
        self, actions: Any
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one action in each lane; raises ResetNeeded where one is missing.

        A step that raises has changed nothing and can be tried again.
        """
        n = self.num_envs
        resets: list[int] = []
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            resets = [i for i, reply in enumerate(self.replies) if reply is not None and reply.done]
        # A set of the few, not an array: single elements of arrays are slow to read.
        waiting = set(resets)
        lanes = [i for i in range(n) if i not in waiting] if resets else list(range(n))
        states = [live_state(self.replies[i]) for i in lanes]
        replies = cast("list[Reply[State]]", list(self.replies))
        for lane, reply in zip(lanes, self._advance(states, lanes, actions), strict=True):
            replies[lane] = reply
        self._ask(replies, resets)

        stops = [reply.state.stop_reason for reply in replies]
        rewards = np.array([reply.reward for reply in replies], dtype=np.float64)
        terminated = np.array([stop is StopReason.ANSWERED for stop in stops], dtype=np.bool_)
        truncated = np.array([stop is StopReason.OUT_OF_TURNS for stop in stops], dtype=np.bool_)
        final: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            final = self._final(replies, ended := [i for i, stop in enumerate(stops) if stop])
            self._ask(replies, ended)
        infos = self._infos(replies, range(n)) | final
        self.replies = list(replies)  # last, after all that can fail
        return self._observations(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """The dialogue of each lane so far, where `render_mode` is "ansi"."""
        if self.render_mode is None:
            warn_no_render()
            return None
        return tuple(dialogue_text(reply) for reply in self.replies)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the connections to the database, unless the task was given."""
        if self._owned:
            self.task.close()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each lane, as in `SyncVectorEnv`."""
        return tuple(self._generator(lane) for lane in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each lane's generator, as in `SyncVectorEnv`."""
        return tuple(self._seeds[lane] for lane, _ in enumerate(self.np_random))

    def _generator(self, lane: int) -> np.random.Generator:
        generator = self._generators[lane]
        if generator is None:
            generator, self._seeds[lane] = seeding.np_random()
            self._generators[lane] = generator
        return generator

    def _masked(self, options: Mapping[str, Any] | None) -> Sequence[int]:
        if not options or "reset_mask" not in options:
            return range(self.num_envs)
        mask = options["reset_mask"]
        if not (
            isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == bool
        ):
            raise ConfigError(
                f"options['reset_mask'] must be an array of {self.num_envs} booleans."
            )
        if not mask.any():
            raise ConfigError("options['reset_mask'] must be true for at least one environment.")
        return np.flatnonzero(mask).tolist()

    def _ask(
        self, replies: MutableSequence[Any], lanes: Sequence[int], fact: Fact | None = None
    ) -> None:
        """Put a new question of each lane in its place among the replies."""
        if fact is None:
            facts = draw_facts(self.task, [self._generator(lane) for lane in lanes])
        else:
            facts = [fact] * len(lanes)
        questions = begin(self.task, facts, self.single_observation_space)
        for lane, question in zip(lanes, questions, strict=True):
            replies[lane] = question

    def _advance(self, states: list[State], lanes: list[int], actions: Any) -> list[Reply[State]]:
        raw = not isinstance(actions, Mapping)
        texts = actions if raw else actions["text"]
        kinds = None if raw else np.asarray(actions["kind"]).tolist()
        if len(texts) != self.num_envs or (kinds is not None and len(kinds) != self.num_envs):
            raise InvalidAction(f"Give one action for each of the {self.num_envs} environments.")
        if kinds is None:
            turns = [texts[i] for i in lanes]
            return self.task.advance(states, [self.task.parse(turn) for turn in turns], turns)
        return self.task.advance(states, [read_action(kinds[i], texts[i]) for i in lanes])

    def _observations(self) -> tuple[str, ...]:
        return tuple("" if reply is None else reply.observation for reply in self.replies)

    def _infos(
        self, replies: Sequence[Reply[State] | None], lanes: Sequence[int]
    ) -> dict[str, Any]:
        """What `VectorEnv._add_info` makes of the infos of `lanes`, column by column."""
        if not lanes:
            return {}
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[lanes] = True
        chosen = [cast("Reply[State]", replies[lane]) for lane in lanes]

        def column(values: list[Any]) -> np.ndarray:
            kind = type(values[0]) if type(values[0]) in (int, float) else object
            array = np.full(self.num_envs, None if kind is object else 0, dtype=kind)
            array[lanes] = values
            return array

        def masked(columns: dict[str, Any]) -> dict[str, Any]:
            return columns | {f"_{key}": mask.copy() for key in columns}

        rewards = {
            part: column([reply.rewards.get(part, 0.0) for reply in chosen])
            for part in reward_parts(self.task)
        }
        infos = {key: column([get(reply) for reply in chosen]) for key, get in INFO.items()}
        return masked(infos | {"rewards": masked(rewards)})

    def _final(self, replies: Sequence[Reply[State]], ended: list[int]) -> dict[str, Any]:
        """The last observations and infos of episodes that are reset in the step they end in."""
        if not ended:
            return {}
        observations = np.full(self.num_envs, None, dtype=object)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        for lane in ended:
            observations[lane] = replies[lane].observation
            mask[lane] = True
        return {
            "final_obs": observations,
            "_final_obs": mask,
            "final_info": self._infos(replies, ended),
            "_final_info": mask.copy(),
        }


def _check_vector(
    num_envs: int, mode: str | AutoresetMode, render_mode: str | None
) -> AutoresetMode:
    check_render_mode(render_mode)
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}; it must be at least 1.")
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(known.value for known in AutoresetMode)
        raise ConfigError(f"There is no autoreset_mode {mode!r}; choose among {known}.") from None
