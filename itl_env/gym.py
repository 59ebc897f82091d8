"""Fact recall as Gymnasium environments: thin shells over `RecallTask`.

    gymnasium.make("itl_env:ITL/FactRecall-v0", database="sqlite:///facts.db")
    gymnasium.make_vec("itl_env:ITL/FactRecall-v0", num_envs=1024, database="sqlite:///facts.db")

Everything that happens in an episode is decided by the task; the shells translate actions and
replies, draw facts and keep the rules of Gymnasium's API.
"""

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from itl_env.episode import StopReason
from itl_env.errors import ConfigError
from itl_env.gym_shared import (
    begin,
    build_task,
    check_render_mode,
    draw_facts,
    info_of,
    live_state,
    pinned_fact,
    read_action,
    spaces_of,
)
from itl_env.gym_single import SingleEnv
from itl_env.gym_vector import FactRecallVectorEnv
from itl_env.recall import RecallTask, State
from itl_env.task import Reply
from itl_env.unicode_text import UnicodeText

__all__ = ["FactRecallEnv", "FactRecallVectorEnv", "TextActions", "UnicodeText"]


class FactRecallEnv(SingleEnv):
    """Asked one fact, an agent may query a database and must answer.

    ## Action space

    `Dict(kind=Discrete(2), text=UnicodeText(max_length))`. Kind 0 sends `text` to the database,
    kind 1 answers with it: the bare value or a full statement. With `max_queries=0` the space has
    kind 1 only. No text raises: one that is malformed, forbidden or too long gets an error reply,
    and a turn is spent. Agents that write one raw string are served by the wrapper `TextActions`.

    ## Observation space

    `UnicodeText`: the question at reset, then the database's reply to each query; empty after the
    answer.

    ## Reward and end of an episode

    1.0 if the answer is exactly right (see `itl_env.rubric`), else 0.0. An episode terminates with
    the answer, and is truncated when the turns are spent without one. If the database itself fails,
    `step` raises `EnvironmentFailure`, and the same step may be tried again.

    ## Reset

    A seed picks a fact, the same on every machine and with every version of NumPy.
    `options={"fact": {"name": "Ann Lee", "attribute": "birth_place"}}` (or `["Ann Lee",
    "birth_place"]`) asks that one.

    ## Info

    Always `name`, `attribute`, `n_queries`, `error_code` (of this reply), `stop_reason`, `answer`
    (the value that was read from the final turn), `gold` and `rewards` (by part); what is not known
    or not to be known before the end is None, a reward 0.0.

    ## Arguments

    All are JSON values, so that specs can be saved.

    database: SQLAlchemy URL without a password, or the path of a SQLite file.
    table, key: the table, and its column that names a row; "people" and "name" by default.
    keys: [start, stop], the slice of the names that are asked about; all by default.
    attributes, style, dialect, max_queries, max_turns, max_length, rubric: as in `RecallTask`.
    phrasings: for any attribute, {"question": ..., "statement": ...}.
    render_mode: "ansi" gives the dialogue so far, one line a message.

    ## Example

    >>> import gymnasium
    >>> from itl_env import FactDatabase, people
    >>> FactDatabase.create("sqlite:///facts.db", people(100, seed=0)).close()
    >>> env = gymnasium.make("itl_env:ITL/FactRecall-v0", database="sqlite:///facts.db")
    >>> question, info = env.reset(options={"fact": ["Bernice Cunningham", "birth_date"]})
    >>> question
    'When was Bernice Cunningham born?'
    >>> query = {"kind": 0, "text": "FIND birth_date FOR Bernice Cunningham"}
    >>> reply, reward, terminated, truncated, info = env.step(query)
    >>> reply
    '1/6/1982'
    >>> _, reward, terminated, _, info = env.step({"kind": 1, "text": reply})
    >>> reward, terminated, info["gold"]
    (1.0, True, '1/6/1982')
    >>> env.close()

    ## Many episodes at once

    `make_vec` uses `FactRecallVectorEnv`, the fast way. `vectorization_mode="sync"` works too, and
    is the one for wrapped environments such as `TextActions`; "async" starts a process a lane and
    pays only where wrappers are slow.

    ## Version history

    * v0: first version.
    """

    observation_space: UnicodeText
    task: RecallTask
    reply: Reply[State] | None

    def __init__(self, database: str, *, render_mode: str | None = None, **arguments: Any) -> None:
        check_render_mode(render_mode)
        self._wrap(build_task(database, **arguments), render_mode, owned=True)

    def _wrap(self, task: RecallTask, render_mode: str | None, owned: bool) -> None:
        super()._wrap(task, render_mode, owned)
        self.observation_space, self.action_space = spaces_of(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Ask a fact; raises ConfigError for options that it does not know."""
        super().reset(seed=seed)
        fact = pinned_fact(self.task, options, known=("fact",))
        fact = fact or draw_facts(self.task, [self.np_random])[0]
        (self.reply,) = begin(self.task, [fact], self.observation_space)
        return self.reply.observation, info_of(self.task, self.reply)

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one action, or one raw turn given as a string."""
        state = live_state(self.reply)
        if isinstance(action, str):
            (self.reply,) = self.task.advance([state], [self.task.parse(action)], [action])
        else:
            parsed = read_action(action["kind"], action["text"])
            (self.reply,) = self.task.advance([state], [parsed])
        stop = self.reply.state.stop_reason
        return (
            self.reply.observation,
            self.reply.reward,
            stop is StopReason.ANSWERED,
            stop is StopReason.OUT_OF_TURNS,
            info_of(self.task, self.reply),
        )


class TextActions(gymnasium.ActionWrapper[str, str, Any], RecordConstructorArgs):
    """For agents that write one raw string a turn, which is read as `RecallTask.parse` does.

    A turn is a query if it holds a fenced block or begins like a call, else an answer. One that
    cannot be read gets an error reply. The dialogue records the turn as it was written.

    >>> import gymnasium
    >>> from itl_env import FactDatabase, people
    >>> FactDatabase.create("sqlite:///raw.db", people(100, seed=0)).close()
    >>> env = TextActions(gymnasium.make("ITL/FactRecall-v0", database="sqlite:///raw.db"))
    >>> _ = env.reset(options={"fact": ["Bernice Cunningham", "birth_date"]})
    >>> env.step("FIND birth_date FOR Bernice Cunningham")[0]
    '1/6/1982'
    >>> env.step("Bernice Cunningham was born on 1/6/1982.")[1]
    1.0
    >>> env.close()
    """

    def __init__(self, env: gymnasium.Env[str, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ActionWrapper.__init__(self, env)
        if not isinstance(env.unwrapped, FactRecallEnv):
            raise ConfigError(f"TextActions wraps a FactRecallEnv, not {env.unwrapped}.")
        self.action_space = UnicodeText(env.unwrapped.task.max_length)

    def action(self, action: str) -> str:
        """The environment reads raw turns itself; only the space is another one."""
        return action


gymnasium.register(
    "ITL/FactRecall-v0",
    entry_point="itl_env.gym:FactRecallEnv",
    vector_entry_point="itl_env.gym:FactRecallVectorEnv",
    # The checker is for authors. Gymnasium 1.4's never gets over a first reset that raises: the
    # next step is a TypeError.
    disable_env_checker=True,
)
