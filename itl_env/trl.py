"""Tasks as environments of TRL's `GRPOTrainer`: thin shells by composition.

    GRPOTrainer(model, rewards, args, rows, environment_factory=environment_factory(task, items))

TRL makes a shell for each completion of a batch, calls `reset(**row)` with the row's columns, and
offers every public method to the model as a tool. So a shell has the tools of its task and nothing
else; what happens in an episode is the task's. All completions of a group have one row, and its
column `index` names the item that is asked, so they start alike.

A shell answers calls. What an episode is worth follows from its transcript: `replay` plays that in
the task once more, with all that TRL has kept from the shell: unknown tools, and what was said
last.

This module does not import TRL.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from itl_env.actions import Answer, Final, ParseError, Query, ToolCall
from itl_env.dialogue import lookup_query
from itl_env.episode import Completion
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.recall import RecallTask
from itl_env.task import Reply, Task
from itl_env.tool_call import ToolCallTask

Asked = TypeVar("Asked")
Calls = Literal["text", "native"]
Turn = tuple[Any, str | None]
"""An action, and the text that it was written as; None where it was a call of the template's."""


class Shell(Generic[Asked]):
    """One episode of a task at a time.

    Its own names begin with an underscore, or TRL would take them for tools.
    """

    _task: Task[Asked]
    _items: Sequence[Asked]
    _reply: Reply[Any] | None = None
    _seconds = 0.0  # in the task, since this was last asked
    _failure: EnvironmentFailure | None = None  # which TRL would tell the model instead of us

    def reset(self, index: int, **row: Any) -> None:
        """Begin the episode of the item at `index`; the prompt is the row's."""
        (state,) = self._task.start([self._items[index]])
        self._reply = Reply(state, "", 0.0, False, None, {})

    def _play(self, action: Any, turn: str | None = None) -> str:
        assert self._reply is not None
        if self._reply.done:
            raise ValueError("the episode is over")  # TRL has no other sign for that
        began = time.perf_counter()
        turns = None if turn is None else [turn]
        try:
            (self._reply,) = self._task.advance([self._reply.state], [action], turns)
        except EnvironmentFailure as failure:
            self._failure = failure
            raise
        self._seconds += time.perf_counter() - began
        return self._reply.observation


class _Turns(Shell[Asked]):
    """For models that write calls as text: a whole turn is the one argument of the one tool."""

    def turn(self, text: str) -> str:
        """Take a turn that calls a tool.

        Args:
            text: The turn as it was written.
        """
        return self._play(self._task.read(Completion(text, kind="query")), text)


class _Facts(Shell[Asked]):
    """Fact recall for models that call tools in their template's own way."""

    def find(self, attribute: str, name: str) -> str:
        """Look one attribute of a person up in the database.

        Args:
            attribute: what to look up
            name: whose it is
        """
        return self._play(Query(lookup_query(attribute, name)))


class _Calculator(Shell[Asked]):
    def calculator(self, expression: str) -> str:
        """Evaluate an arithmetic expression.

        Args:
            expression: The expression, such as 2 * (3 + 4).
        """
        return self._play(ToolCall("calculator", {"expression": expression}))


class _Python(Shell[Asked]):
    def python(self, code: str) -> str:
        """Run Python code and see what it prints.

        Args:
            code: The code.
        """
        return self._play(ToolCall("python", {"code": code}))


class _Find(Shell[Asked]):
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


def turns_of(
    task: "RecallTask | ToolCallTask", messages: Sequence[Mapping[str, Any]], calls: Calls
) -> list[Turn]:
    """The turns of a completion, as TRL gives it to reward functions.

    messages: as text, an assistant's message is a turn; natively its first call is one, as where
        the model is evaluated, and a message without a call the answer.
    """
    turns: list[Turn] = []
    for message in messages:
        if message.get("role") != "assistant":
            continue
        text = str(message.get("content") or "")
        if calls == "text":
            turns.append((task.read(Completion(text, kind=message.get("kind"))), text))
        elif called := message.get("tool_calls"):
            turns.append((_native_action(task, called[0]), None))
        else:
            answer = Answer(text) if isinstance(task, RecallTask) else Final(text.strip())
            turns.append((answer, None))
    return turns


def _native_action(task: "RecallTask | ToolCallTask", call: Mapping[str, Any]) -> Any:
    function = call.get("function") or {}
    name, args = str(function.get("name")), function.get("arguments")
    args = dict(args) if isinstance(args, Mapping) else {}
    if isinstance(task, ToolCallTask):
        return ToolCall(name, args)
    attribute, person = args.get("attribute"), args.get("name")
    if name == "find" and isinstance(attribute, str) and isinstance(person, str):
        return Query(lookup_query(attribute, person))
    return ParseError("malformed", "call find with attribute and name")


def replay(
    task: "RecallTask | ToolCallTask", items: Sequence[Any], transcripts: Sequence[Sequence[Turn]]
) -> list[Reply[Any]]:
    """The last reply of the episode about each item, after the turns of its transcript.

    Episodes that are cut in their midst get what the rubric gives for no answer. Raises
    EnvironmentFailure if the database or a tool fails.
    """
    replies: list[Reply[Any]] = [
        Reply(state, "", 0.0, False, None, {}) for state in task.start(items)
    ]
    for place in range(max(map(len, transcripts), default=0)):
        lanes = [
            lane
            for lane, turns in enumerate(transcripts)
            if place < len(turns) and not replies[lane].done
        ]
        # Those that were written and those that were called are told apart: the task writes the
        # latter itself.
        for written in (True, False):
            some = [lane for lane in lanes if (transcripts[lane][place][1] is not None) == written]
            if some:
                texts = [transcripts[lane][place][1] or "" for lane in some] if written else None
                states = [replies[lane].state for lane in some]
                actions = [transcripts[lane][place][0] for lane in some]
                played: Sequence[Reply[Any]] = task.advance(states, actions, texts)
                for lane, reply in zip(some, played, strict=True):
                    replies[lane] = reply
    return [reply if reply.done else _cut(task, reply) for reply in replies]


def _cut(task: "RecallTask | ToolCallTask", reply: Reply[Any]) -> Reply[Any]:
    total, parts = task.rubric(reply.state)
    return reply._replace(reward=total, rewards=parts)
