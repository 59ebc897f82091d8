"""Tool calling as a Gymnasium environment: a thin shell over `ToolCallTask`.

gymnasium.make("itl_env:ITL/ToolCall-v0", categories=["calculator", "no_tool"], level=2)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.error import InvalidAction

from itl_env.database import FactDatabase
from itl_env.dialogue import ERROR_PREFIX
from itl_env.episode import StopReason
from itl_env.errors import ConfigError
from itl_env.executor import Executor, MontyExecutor
from itl_env.generated import ages, generate
from itl_env.gym_shared import (
    ROOM_FOR_ERRORS,
    check_render_mode,
    live_state,
    url_without_password,
)
from itl_env.gym_single import SingleEnv
from itl_env.samples import Category, Sample, load_samples
from itl_env.task import Reply
from itl_env.tool_call import INSTRUCTION, ToolCallTask, ToolState
from itl_env.tool_data import TRAIN
from itl_env.tools import standard_tools
from itl_env.unicode_text import UnicodeText

GENERATED: tuple[Category, ...] = ("calculator", "python_exec", "no_tool")
EXECUTORS = ("monty", "subprocess")


def make_executor(name: str) -> Executor:
    """The executor of that name; raises ConfigError if there is none."""
    if name == "monty":
        return MontyExecutor()
    if name == "subprocess":
        from itl_env.subprocess_executor import SubprocessExecutor

        return SubprocessExecutor()
    raise ConfigError(f"There is no executor {name!r}; choose among {', '.join(EXECUTORS)}.")


def build_tool_task(
    *,
    data: str | None = None,
    categories: Sequence[Category] | None = None,
    level: int = 1,
    n: int = 1_000,
    data_seed: int = 0,
    database: str | None = None,
    max_turns: int = 1,
    rubric: str = "outcome",
    instruction: str = INSTRUCTION,
    max_length: int = 4000,
    executor: str = "monty",
) -> ToolCallTask:
    """The task of JSON arguments; see `ToolCallEnv`. Raises ConfigError and DatabaseError."""
    _check_whole(level=level, n=n, data_seed=data_seed, max_turns=max_turns, max_length=max_length)
    _check_text(rubric=rubric, instruction=instruction, executor=executor)
    _check_text(data="" if data is None else data, database="" if database is None else database)
    if categories is not None and not isinstance(categories, list | tuple):
        raise ConfigError(f"categories must be a list of text, not {categories!r}.")
    _check_text(**{f"categories[{place}]": each for place, each in enumerate(categories or ())})
    facts = None if database is None else FactDatabase(url_without_password(database))
    tools = standard_tools(facts, make_executor(executor))
    if data is not None:
        samples = _of_categories(load_samples(_file(data)), categories, data)
    else:
        if n < 1:
            raise ConfigError(f"n is {n}; it must be at least 1.")
        samples = _generated(n, data_seed, categories or GENERATED, level, facts)
    return ToolCallTask(
        samples,
        tools=tools,
        max_turns=max_turns,
        rubric=rubric,
        instruction=instruction,
        max_length=max_length,
    )


def _file(data: str) -> Path:
    """The samples of a folder of `itl toolcall data` are those to train on."""
    path = Path(data)
    return path / TRAIN if path.is_dir() else path


def _of_categories(
    samples: list[Sample], categories: Sequence[Category] | None, data: str
) -> list[Sample]:
    if categories is None:
        return samples
    chosen = [sample for sample in samples if sample.category in categories]
    if not chosen:
        raise ConfigError(f"{data} holds no samples of {', '.join(categories)}.")
    return chosen


def _check_whole(**given: object) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} must be a whole number, not {value!r}.")


def _check_text(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be text, not {value!r}.")


def _generated(
    n: int,
    seed: int,
    categories: Sequence[Category],
    level: int,
    facts: FactDatabase | None,
) -> list[Sample]:
    """N samples, of which `mixed` ones take their share of the categories."""
    if "mixed" not in categories:
        return list(generate(n, seed, categories=categories, level=level))
    if facts is None:
        raise ConfigError("The category 'mixed' looks facts up; name a database.")
    others = [each for each in categories if each != "mixed"]
    n_mixed = n // len(categories) if others else n
    mixed = list(ages(facts, n_mixed, seed))
    if not others:
        return mixed
    return [*generate(n - n_mixed, seed, categories=others, level=level), *mixed]


class ToolCallEnv(SingleEnv):
    """Given a prompt, an agent writes JSON: a call of a tool, or the final answer.

    ## Action space

    `UnicodeText(max_length)`: one turn, which is to be `{"final": "text"}`, `{"tool": "calculator",
    "args": {"expression": "..."}}` or `{"tool": "python", "args": {"code": "..."}}`; with a
    database also `{"tool": "find", "args": {"attribute": "...", "name": "..."}}`. The JSON is what
    lies between the first `{` and the last `}`. No text raises: what cannot be read or run gets an
    error reply, and a turn is spent.

    ## Observation space

    `UnicodeText`: the prompt at reset, then the tool's reply; empty after a final answer.

    ## Reward and end of an episode

    By the rubric (see `itl_env.rubric`); with `outcome` 1.0 if what was executed, or answered where
    no tool is needed, is right. With `max_turns=1` the first turn ends the episode, and the result
    of its call is the answer; with more an episode terminates with `{"final": ...}`, and is
    truncated when the turns are spent without one.

    ## Reset

    A seed picks a sample, the same on every machine. `options={"sample": "id"}` asks that one.

    ## Info

    Always `id`, `category`, `n_queries`, `error_code`, `stop_reason`, `answer`, `gold` and
    `rewards`; what is not to be known before the end is None, a reward 0.0.

    ## Arguments

    All are JSON values, so that specs can be saved.

    data: a file of samples, or a folder of `itl toolcall data`, whose samples to train on are
        taken; without one, n samples are generated under data_seed, at a level of 1 to 4.
    categories: which samples; by default all of the file, or "calculator", "python_exec" and
        "no_tool" are generated. With a database there is "mixed", too: look up, then compute.
    database: a fact database that the tool `find` looks into: a path, or a URL without password.
    executor: of Python: "monty", without files and network, or "subprocess", CPython without
        network and the user's files, contained but no sandbox; see `itl_env.subprocess_executor`
        for what that does not keep out.
    max_turns, rubric, instruction, max_length: as in `ToolCallTask`.
    render_mode: "ansi" gives the dialogue so far, one line a message.

    ## Example

    >>> import gymnasium
    >>> env = gymnasium.make("itl_env:ITL/ToolCall-v0", categories=["calculator"], instruction="")
    >>> prompt, info = env.reset(options={"sample": "calculator-1-0-0"})
    >>> prompt
    'What is 4 times 9?'
    >>> turn = '{"tool": "calculator", "args": {"expression": "4 * 9"}}'
    >>> reply, reward, terminated, truncated, info = env.step(turn)
    >>> reply, reward, terminated
    ('36', 1.0, True)
    >>> env.close()

    ## Version history

    * v0: first version.
    """

    task: ToolCallTask
    reply: Reply[ToolState] | None

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        check_render_mode(render_mode)
        self._wrap(build_tool_task(**arguments), render_mode, owned=True)

    def _wrap(self, task: ToolCallTask, render_mode: str | None, owned: bool) -> None:
        super()._wrap(task, render_mode, owned)
        longest = max(len(task.question(sample)) for sample in task.samples)
        room = len(ERROR_PREFIX) + max(task.max_length, ROOM_FOR_ERRORS)
        self.observation_space: UnicodeText = UnicodeText(max(longest, room))
        self.action_space: UnicodeText = UnicodeText(task.max_length)
        self._by_id = {sample.id: sample for sample in task.samples}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Give a prompt; raises ConfigError for options that it does not know."""
        super().reset(seed=seed)
        sample = self._pinned(options)
        if sample is None:
            # Of raw bits, since NumPy's distributions may change between versions.
            bits = int(self.np_random.bit_generator.random_raw())
            sample = self.task.samples[bits * len(self.task) >> 64]
        (state,) = self.task.start([sample])
        self.reply = Reply(state, state.messages[0].content, 0.0, False, None, {})
        return self.reply.observation, self._info(self.reply)

    def _pinned(self, options: Mapping[str, Any] | None) -> Sample | None:
        """The sample that the options ask for, if they do."""
        given = dict(options or {})
        name = given.pop("sample", None)
        if given:
            raise ConfigError(f"There is no reset option {min(given)!r}; there is sample.")
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._by_id:
            raise ConfigError(f"There is no sample {name!r}.")
        return self._by_id[name]

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn."""
        state = live_state(self.reply)
        if not isinstance(action, str):
            raise InvalidAction(f"An action is a text, not {type(action).__name__}.")
        (self.reply,) = self.task.advance([state], [self.task.parse(action)], [action])
        cut = self.reply.state.stop_reason is StopReason.OUT_OF_TURNS and self.task.max_turns > 1
        return (
            self.reply.observation,
            self.reply.reward,
            self.reply.done and not cut,
            cut,
            self._info(self.reply),
        )

    def _info(self, reply: Reply[ToolState]) -> dict[str, Any]:
        """The same keys at every step."""
        state = reply.state
        return {
            "id": state.sample.id,
            "category": state.sample.category,
            "n_queries": state.n_queries,
            "error_code": reply.error_code,
            "stop_reason": state.stop_reason and state.stop_reason.value,
            "answer": state.answer,
            "gold": state.sample.expected_answer if reply.done else None,
            "rewards": {
                part.name: reply.rewards.get(part.name, 0.0) for part in self.task.rubric.components
            },
        }


gymnasium.register(
    "ITL/ToolCall-v0",
    entry_point="itl_env.gym_tools:ToolCallEnv",
    disable_env_checker=True,  # as that of ITL/FactRecall-v0, and why
)
