"""What the single and the vector environment of fact recall share: each function does one thing
between Gymnasium's API and a `RecallTask`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import sqlalchemy as sa
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from itl_env.actions import Action, Answer, Query
from itl_env.connection import holds_password, parse_url
from itl_env.database import FactDatabase
from itl_env.dialogue import Dialect, Style
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.recall import RecallTask, State
from itl_env.task import Reply, S
from itl_env.unicode_text import UnicodeText

METADATA = {"render_modes": ["ansi"], "render_fps": 1}
QUERY, ANSWER = 0, 1  # the kinds of action

# An error reply is shorter than this, or quotes no more than the action it refuses.
ROOM_FOR_ERRORS = 256

# The values of an info, from the last reply.
INFO: dict[str, Callable[[Reply[State]], Any]] = {
    "name": lambda reply: reply.state.fact.name,
    "attribute": lambda reply: reply.state.fact.attribute,
    "n_queries": lambda reply: reply.state.n_queries,
    "error_code": lambda reply: reply.error_code,
    # Plain text: it may cross processes and be written anywhere.
    "stop_reason": lambda reply: reply.state.stop_reason and reply.state.stop_reason.value,
    "answer": lambda reply: reply.state.answer,
    "gold": lambda reply: reply.state.fact.value if reply.done else None,
}


def reward_parts(task: RecallTask) -> list[str]:
    """The names of the parts of the task's reward."""
    return [component.name for component in task.rubric.components]


def info_of(task: RecallTask, reply: Reply[State]) -> dict[str, Any]:
    """The info of one environment, with the same keys at every step."""
    info = {key: get(reply) for key, get in INFO.items()}
    info["rewards"] = {part: reply.rewards.get(part, 0.0) for part in reward_parts(task)}
    return info


def build_task(
    database: str,
    *,
    table: str = "people",
    key: str = "name",
    keys: list[int | None] | None = None,
    attributes: Sequence[str] | None = None,
    style: Style = "compact",
    dialect: Dialect = "lookup",
    max_queries: int = 1,
    max_turns: int | None = None,
    max_length: int = 2000,
    rubric: str = "exact",
    aliases: str | None = None,
    phrasings: dict[str, dict[str, str]] | None = None,
) -> RecallTask:
    """The task of JSON arguments; raises ConfigError and DatabaseError."""
    url = url_without_password(database)
    if keys is not None and (not isinstance(keys, list | tuple) or len(keys) != 2):
        raise ConfigError(f"keys must be [start, stop], not {keys!r}.")
    # Without the column of aliases among them, the task would not find it.
    columns = None if aliases is not None else attributes
    facts = FactDatabase(url, table=table, key=key, attributes=columns)
    try:
        return RecallTask(
            facts,
            attributes=attributes,
            keys=slice(None) if keys is None else slice(*keys),
            style=style,
            dialect=dialect,
            max_queries=max_queries,
            max_turns=max_turns,
            max_length=max_length,
            rubric=rubric,
            aliases=aliases,
            own_phrasings=phrasings,
        )
    except BaseException:
        facts.close()
        raise


def url_without_password(database: str) -> sa.URL:
    """The address of a database; raises ConfigError if it holds a password.

    The spec of an environment holds its arguments, and specs are printed and saved.
    """
    if not isinstance(database, str):
        raise ConfigError(f"database must be a URL or a path as text, not {type(database)}.")
    url = parse_url(database)
    if holds_password(url):
        raise ConfigError(
            "The database URL of an environment may not hold a password: leave it out and give it "
            "in PGPASSWORD or ~/.pgpass."
        )
    return url


def check_render_mode(render_mode: str | None) -> None:
    """Raise ConfigError for a mode that there is not."""
    if render_mode not in (None, "ansi"):
        raise ConfigError(f"There is no render_mode {render_mode!r}; choose 'ansi' or None.")


def spaces_of(task: RecallTask) -> tuple[UnicodeText, spaces.Dict]:
    """Observations and actions; the first has room for every reply that the task can give."""
    asked = max(len(task.question(Fact("", attribute, ""))) for attribute in task.attributes)
    listed = len(", ".join(task.database.attributes))
    observations = UnicodeText(task.max_length + max(asked, listed + ROOM_FOR_ERRORS))
    # Without a tool there is nothing to sample but answers; a query would only waste the episode.
    kinds = spaces.Discrete(2) if task.max_queries else spaces.Discrete(1, start=ANSWER)
    return observations, spaces.Dict(kind=kinds, text=UnicodeText(task.max_length))


def begin(task: RecallTask, facts: Sequence[Fact], space: UnicodeText) -> list[Reply[State]]:
    """The opening of an episode about each fact, as a reply that is the question."""
    replies = []
    for state in task.start(facts):
        question = state.messages[0].content
        if len(question) > space.max_length:
            raise ConfigError(
                f"The question about {state.fact.name[:40]!r}... has {len(question)} characters: "
                "raise max_length."
            )
        replies.append(Reply(state, question, 0.0, False, None, {}))
    return replies


def draw_facts(task: RecallTask, generators: Sequence[np.random.Generator]) -> list[Fact]:
    """A uniform fact from each generator, read together.

    Of raw bits, since NumPy's distributions may change between versions. Where reading fails, the
    generators are as before, so that a second try draws the same facts.
    """
    states = [generator.bit_generator.state for generator in generators]
    draws = [int(generator.bit_generator.random_raw()) for generator in generators]
    try:
        return task.facts_at([bits * task.n_facts >> 64 for bits in draws])
    except BaseException:
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
        raise


def pinned_fact(
    task: RecallTask, options: Mapping[str, Any] | None, known: tuple[str, ...]
) -> Fact | None:
    """The fact that the options ask for, if they do."""
    if unknown := sorted(set(options or ()) - set(known)):
        raise ConfigError(f"There is no reset option {unknown[0]!r}; there is {', '.join(known)}.")
    given = (options or {}).get("fact")
    if given is None:
        return None
    if isinstance(given, Mapping) and set(given) == {"name", "attribute"}:
        given = [given["name"], given["attribute"]]
    if (
        not isinstance(given, list | tuple)
        or len(given) != 2
        or not all(isinstance(word, str) for word in given)
    ):
        raise ConfigError(
            f"options['fact'] must be {{'name': ..., 'attribute': ...}} or [name, attribute], "
            f"not {given!r}."
        )
    return task.fact_about(*given)


def live_state(reply: Reply[S] | None) -> S:
    """The state that an action can be played in; raises ResetNeeded if there is none."""
    if reply is None:
        raise ResetNeeded("Call reset() before step().")
    if reply.done:
        raise ResetNeeded("The episode is over: call reset() before the next step().")
    return reply.state


def read_action(kind: Any, text: Any) -> Action:
    """The task's form of an action; raises InvalidAction for what is none, whatever its text."""
    if isinstance(text, str):
        if kind == QUERY:
            return Query(text)
        if kind == ANSWER:
            return Answer(text)
    raise InvalidAction(
        f"An action is a kind, {QUERY} (query) or {ANSWER} (answer), and a text, "
        f"not {kind!r} and {type(text).__name__}."
    )


def warn_no_render() -> None:
    """Say what Gymnasium's own environments say where there is nothing to render."""
    gymnasium.logger.warn('Nothing is rendered: make the environment with render_mode="ansi".')


def dialogue_text(reply: Reply[Any] | None) -> str:
    """The dialogue so far, one line a message; raises ResetNeeded before the first."""
    if reply is None:
        raise ResetNeeded("Call reset() before render().")
    lines = (f"{message.role:<10}{_line(message.content)}" for message in reply.state.messages)
    return "\n".join(lines)


def _line(text: str) -> str:
    """The text on one line that any terminal can show, and that commands no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
