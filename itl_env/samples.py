"""Samples of tool calling: a prompt, the call or answer that is right, and what must come of it.

A file of samples is a JSON array, or JSON lines, of objects::

    {"id": "sum-1", "source": "mine", "category": "calculator", "tool_needed": true,
     "tool": "calculator", "tool_args": {"expression": "2 + 3"},
     "prompt": "What is 2 plus 3?", "expected_answer": "5"}

`metadata` is optional. Of its fields these mean something here: `answer_type`, `number` or `text`;
`tolerance` of a number; and `steps`, the calls of a sample that takes several, of which `tool` and
`tool_args` are the first.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.files import whole_file
from itl_env.json_rows import read_json_rows
from itl_env.text import texts_in, unstorable

Category = Literal["calculator", "python_exec", "no_tool", "multi_turn", "mixed"]
"""What a sample exercises; `multi_turn` takes several calculations, `mixed` looks a fact up and
computes with it. The first three are those of the published data."""

AnswerType = Literal["number", "text"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
ANSWER_TYPES: tuple[AnswerType, ...] = get_args(AnswerType)

TOLERANCE = 1e-6  # within which two numbers are the same, relative to what is expected above 1


class Step(NamedTuple):
    """One call of a tool."""

    tool: str
    args: Mapping[str, str]


class Sample(NamedTuple):
    """One task of tool calling.

    steps: the right calls in order; empty if no tool is needed.
    expected_answer: what the last call gives, or what is to be answered.
    tolerance: how far a number may be from it, relative to it where it is above 1.
    metadata: what else the file holds.
    """

    id: str
    source: str
    category: Category
    prompt: str
    steps: tuple[Step, ...]
    expected_answer: str
    answer_type: AnswerType = "text"
    tolerance: float = TOLERANCE
    metadata: Mapping[str, Any] = {}

    @property
    def tool_needed(self) -> bool:
        """Whether the answer must come from a tool."""
        return bool(self.steps)

    @property
    def tool(self) -> str | None:
        """The tool of the first call."""
        return self.steps[0].tool if self.steps else None

    @property
    def fact(self) -> Fact:
        """What is asked, as episodes record it: the sample's id, its category, what is expected."""
        return Fact(self.id, self.category, self.expected_answer)

    def to_dict(self) -> dict[str, Any]:
        """The sample as a file holds it."""
        metadata: dict[str, Any] = {"answer_type": self.answer_type, **self.metadata}
        if self.tolerance != TOLERANCE:
            metadata["tolerance"] = self.tolerance
        if len(self.steps) > 1:
            metadata["steps"] = [{"tool": tool, "args": dict(args)} for tool, args in self.steps]
        return {
            "id": self.id,
            "source": self.source,
            "category": self.category,
            "tool_needed": self.tool_needed,
            "tool": self.tool,
            "tool_args": dict(self.steps[0].args) if self.steps else {},
            "prompt": self.prompt,
            "expected_answer": self.expected_answer,
            "metadata": metadata,
        }

    @classmethod
    def from_dict(cls, row: Any) -> "Sample":
        """The inverse of `to_dict`.

        Raises ConfigError that names the field which does not fit, and why.
        """
        if not isinstance(row, dict):
            raise ConfigError(f"it is no JSON object but {_kind(row)}.")
        for name, value in row.items():
            if problem := next(filter(None, map(unstorable, texts_in(value))), None):
                raise ConfigError(f"field {name!r} holds {problem}.")
        words = {name: _text(row, name) for name in ("id", "source", "prompt", "expected_answer")}
        for name in ("id", "prompt"):
            if not words[name].strip():
                raise ConfigError(f"field {name!r} is empty.")
        category = _one_of(row.get("category"), "category", CATEGORIES)
        metadata = row.get("metadata", {})
        if not isinstance(metadata, dict):
            raise ConfigError(f"field 'metadata' must be an object, not {_kind(metadata)}.")
        metadata = dict(metadata)
        steps = _steps(row, metadata.pop("steps", None))
        answer_type = metadata.pop("answer_type", "number" if category == "calculator" else "text")
        tolerance = metadata.pop("tolerance", TOLERANCE)
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise ConfigError(f"field 'metadata.tolerance' must be a number, not {tolerance!r}.")
        if not 0 <= tolerance < float("inf"):
            raise ConfigError(f"field 'metadata.tolerance' is {tolerance}; it must not be below 0.")
        try:
            tolerance = float(tolerance)
        except OverflowError:
            raise ConfigError("field 'metadata.tolerance' is too large a number.") from None
        return cls(
            id=words["id"],
            source=words["source"],
            category=category,
            prompt=words["prompt"],
            steps=steps,
            expected_answer=words["expected_answer"],
            answer_type=_one_of(answer_type, "metadata.answer_type", ANSWER_TYPES),
            tolerance=tolerance,
            metadata=metadata,
        )


def read_samples(path: str | Path) -> Iterator[Sample]:
    """The samples of a file, one at a time: a JSON array, or JSON lines.

    Raises ConfigError that names the file, the line (or the item), the field and the reason; also
    for two samples of one id.
    """
    seen: set[str] = set()
    for where, row in read_json_rows(path):
        try:
            sample = Sample.from_dict(row)
            if sample.id in seen:
                raise ConfigError(f"field 'id' is {sample.id!r}, as that of a sample before it.")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        seen.add(sample.id)
        yield sample
    if not seen:
        raise ConfigError(f"{path} holds no samples.")


def write_samples(samples: Iterable[Sample], path: str | Path) -> int:
    """Write samples as JSON lines, and return how many; see `whole_file` for what is raised."""
    n = 0
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(sample.to_dict(), ensure_ascii=False) + "\n")
            n += 1
    return n


def _steps(row: Mapping[str, Any], listed: Any) -> tuple[Step, ...]:
    """The calls of a row, which its fields must agree about."""
    needed, tool, args = row.get("tool_needed"), row.get("tool"), row.get("tool_args")
    if not isinstance(needed, bool):
        raise ConfigError(f"field 'tool_needed' must be true or false, not {_kind(needed)}.")
    if not needed:
        if tool not in (None, "", "none") or args or listed:
            raise ConfigError("field 'tool_needed' is false, but there is a tool or a call of one.")
        return ()
    first = _step({"tool": tool, "args": args}, "tool", "tool_args")
    if listed is None:
        return (first,)
    if not isinstance(listed, list) or not listed:
        raise ConfigError("field 'metadata.steps' must be a list of calls.")
    steps = tuple(_step(step, "metadata.steps", "metadata.steps") for step in listed)
    if steps[0] != first:
        raise ConfigError("field 'metadata.steps' begins with another call than 'tool_args'.")
    return steps


def _step(call: Any, name: str, where: str) -> Step:
    tool, args = (call.get("tool"), call.get("args")) if isinstance(call, dict) else (None, None)
    if not isinstance(tool, str) or not tool:
        raise ConfigError(f"field {name!r} must name a tool, not {tool!r}.")
    if not isinstance(args, dict) or not all(isinstance(each, str) for each in args.values()):
        raise ConfigError(f"field {where!r} must be an object whose values are text, not {args!r}.")
    return Step(tool, args)


def _text(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise ConfigError(f"field {name!r} is missing.")
    value = row[name]
    if not isinstance(value, str):
        raise ConfigError(f"field {name!r} must be text, not {_kind(value)}.")
    return value


def _one_of(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"field {name!r} is {value!r}; it must be {', '.join(choices)}.")
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {
        type(None): "null",
        bool: "a boolean",
        str: "text",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "a number")


def load_samples(path: str | Path) -> list[Sample]:
    """All samples of a file; raises what `read_samples` raises."""
    return list(read_samples(path))
