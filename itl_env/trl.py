"""Tasks as environments of TRL's `GRPOTrainer`: thin shells by composition.

    GRPOTrainer(model, rewards, args, rows, environment_factory=environment_factory(task, items))

TRL makes a shell for each completion of a batch, calls `reset(**row)` with the row's columns, and
offers every public method to the model as a tool. So a shell has the tools of its task and nothing
else; what happens in an episode is the task's. All completions of a group have one row, and its
column `index` names the item that is asked, so they start alike.

TRL has no sign for the end of an episode: what a model says last is handed in by `finish`, and a
call after the end raises, which TRL tells the model.

This module does not import TRL.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from itl_env.actions import Answer, Final, Query, ToolCall
from itl_env.dialogue import lookup_query
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.recall import RecallTask
from itl_env.task import Reply, Task
from itl_env.tool_call import ToolCallTask

Asked = TypeVar("Asked")
Calls = Literal["text", "native"]


class Shell(Generic[Asked]):
    """One episode of a task at a time.

    Its own names begin with an underscore, or TRL would take them for tools.
    """

    _task: Task[Asked]
    _items: Sequence[Asked]
    _reply: Reply[Any] | None = None
    _n_played = 0
    _seconds = 0.0  # in the task, since this was last asked

    def reset(self, index: int, **row: Any) -> None:
        """Begin the episode of the item at `index`; the prompt is the row's."""
        (state,) = self._task.start([self._items[index]])
        self._reply, self._n_played = Reply(state, "", 0.0, False, None, {}), 0

    def _play(self, action: Any, turn: str | None = None) -> str:
        assert self._reply is not None
        if self._reply.done:
            raise ValueError("the episode is over")
        began = time.perf_counter()
        turns = None if turn is None else [turn]
        (self._reply,) = self._task.advance([self._reply.state], [action], turns)
        self._n_played += 1
        self._seconds += time.perf_counter() - began
        return self._reply.observation

    def _is_unread(self, said: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last of the model's messages has not been played."""
        return not said[-1].get("tool_calls")

    def _final(self, text: str) -> Any:
        """The action of a turn that calls no tool."""
        return self._task.read(Completion(text))


def finish(shell: Shell[Any], messages: Sequence[Mapping[str, Any]]) -> Reply[Any]:
    """The last reply of a shell's episode, once the model's last turn is played, too.

    messages: the completion as TRL gives it to reward functions.
    """
    assert shell._reply is not None
    said = [message for message in messages if message.get("role") == "assistant"]
    if said and not shell._reply.done and shell._is_unread(said):
        text = str(said[-1].get("content") or "")
        shell._play(shell._final(text), text)
    return shell._reply


class _Turns(Shell[Asked]):
    """For models that write calls as text: a whole turn is the one argument of the one tool."""

    def turn(self, text: str) -> str:
        """Take a turn that calls a tool.

        Args:
            text: The turn as it was written.
        """
        return self._play(self._task.read(Completion(text, kind="query")), text)

    def _is_unread(self, said: Sequence[Mapping[str, Any]]) -> bool:
        # Each turn is one message. A call may be the last of them, where no turn is left to show
        # its reply.
        return len(said) > self._n_played


class _Facts(Shell[Asked]):
    """Fact recall for models that call tools in their template's own way."""

    def find(self, attribute: str, name: str) -> str:
        """Look one attribute of a person up in the database.

        Args:
            attribute: what to look up
            name: whose it is
        """
        return self._play(Query(lookup_query(attribute, name)))

    def _final(self, text: str) -> Any:
        return Answer(text)


class _Tools(Shell[Asked]):
    """Tool calling for such models: a turn without a call is the final answer."""

    def _final(self, text: str) -> Any:
        return Final(text.strip())


class _Calculator(_Tools[Asked]):
    def calculator(self, expression: str) -> str:
        """Evaluate an arithmetic expression.

        Args:
            expression: The expression, such as 2 * (3 + 4).
        """
        return self._play(ToolCall("calculator", {"expression": expression}))


class _Python(_Tools[Asked]):
    def python(self, code: str) -> str:
        """Run Python code and see what it prints.

        Args:
            code: The code.
        """
        return self._play(ToolCall("python", {"code": code}))


class _Find(_Tools[Asked]):
    def find(self, attribute: str, name: str) -> str:
        """Look one attribute of a person up in the database.

        Args:
            attribute: what to look up
            name: whose it is
        """
        return self._play(ToolCall("find", {"attribute": attribute, "name": name}))


_NATIVE: dict[str, type[Shell[Any]]] = {
    "calculator": _Calculator,
    "python": _Python,
    "find": _Find,
}


def environment_factory(
    task: "RecallTask | ToolCallTask", items: Sequence[Any], calls: Calls = "native"
) -> Callable[[], Shell[Any]]:
    """What `GRPOTrainer` makes its environments by.

    items: the facts or samples that rows name by `index`.
    calls: `native` offers the task's tools; `text` the one tool `turn`, for models whose calls are
        text that the task reads.

    Raises ConfigError for a task whose tools have no native form.
    """
    bases: tuple[type[Shell[Any]], ...] = (_Turns,)
    if calls == "native":
        bases = _native_shells(task)
    members = {"_task": task, "_items": items}
    return type(f"{type(task).__name__}Shell", bases, members)


def _native_shells(task: "RecallTask | ToolCallTask") -> tuple[type[Shell[Any]], ...]:
    if isinstance(task, RecallTask):
        if task.dialect != "lookup" or not task.max_queries:
            raise ConfigError("Native calls look facts up; take the lookup dialect, with a tool.")
        return (_Facts,)
    if missing := [name for name in task.tools if name not in _NATIVE]:
        raise ConfigError(f"The tool {missing[0]!r} has no native form; take text calls.")
    return tuple(_NATIVE[name] for name in task.tools)
