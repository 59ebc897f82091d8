"""Tools that a model may call: a calculator, Python, and the fact database.

What a model writes reaches the calculator's own grammar, an executor that contains it, or a query
as a bound parameter; nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from itl_env.calculator import CalculatorError, calculate, number_text
from itl_env.database import FactDatabase
from itl_env.dialogue import NO_RESULT
from itl_env.executor import Executor, MontyExecutor

NO_OUTPUT = "no output"
"""The reply to code that prints nothing."""


class ToolResult(NamedTuple):
    """What a tool replies; `error_code` is a stable code of what was wrong with the call."""

    text: str
    error_code: str | None = None


class Tool(Protocol):
    """Something a model can call by its name with arguments that are text."""

    @property
    def name(self) -> str:
        """What calls name it."""
        ...

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its arguments, all of which a call must have."""
        ...

    @property
    def description(self) -> str:
        """What it does, in one line for a model."""
        ...

    def run(self, calls: Sequence[Mapping[str, str]]) -> list[ToolResult]:
        """A result for each call; raises EnvironmentFailure if the tool itself fails."""
        ...

    def close(self) -> None:
        """Let go of what it holds; a later call takes it again."""
        ...


class Calculator:
    """Evaluates arithmetic; see `itl_env.calculator` for its grammar and its codes."""

    name = "calculator"
    parameters = ("expression",)
    description = "evaluates an arithmetic expression"

    def run(self, calls: Sequence[Mapping[str, str]]) -> list[ToolResult]:
        """See `Tool.run`."""
        return [self._one(call["expression"]) for call in calls]

    def _one(self, expression: str) -> ToolResult:
        try:
            return ToolResult(number_text(calculate(expression)))
        except CalculatorError as error:
            return ToolResult(error.message, error.code)

    def close(self) -> None:
        """See `Tool.close`."""


class Python:
    """Runs code and replies with what it printed.

    executor: what contains it; by default an interpreter without files and network.
    """

    name = "python"
    parameters = ("code",)
    description = "runs Python code and shows what it prints"

    def __init__(self, executor: Executor | None = None) -> None:
        self.executor = executor or MontyExecutor()

    def run(self, calls: Sequence[Mapping[str, str]]) -> list[ToolResult]:
        """See `Tool.run`."""
        return [self._one(call["code"]) for call in calls]

    def _one(self, code: str) -> ToolResult:
        done = self.executor.run(code)
        if done.error_code is not None:
            return ToolResult(done.message, done.error_code)
        return ToolResult(done.output.removesuffix("\n") or NO_OUTPUT)

    def close(self) -> None:
        """See `Tool.close`."""
        self.executor.close()


class Find:
    """Looks one attribute of a name up in a fact database: one statement for all calls."""

    name = "find"
    parameters = ("attribute", "name")
    description = "looks one attribute of a person up in the database"

    def __init__(self, database: FactDatabase) -> None:
        self.database = database

    def run(self, calls: Sequence[Mapping[str, str]]) -> list[ToolResult]:
        """See `Tool.run`."""
        known = [call["attribute"] in self.database.attributes for call in calls]
        asked = [
            (call["name"], call["attribute"])
            for call, fits in zip(calls, known, strict=True)
            if fits
        ]
        values = iter(self.database.lookup(asked))
        listed = ", ".join(self.database.attributes)
        unknown = ToolResult(f"unknown attribute; there are {listed}", "unknown_attribute")
        return [_found(next(values)) if fits else unknown for fits in known]

    def close(self) -> None:
        """See `Tool.close`."""
        self.database.close()


def _found(value: str | None) -> ToolResult:
    return ToolResult(NO_RESULT if value is None else value)


def standard_tools(
    facts: FactDatabase | None = None, executor: Executor | None = None
) -> list[Tool]:
    """A calculator, Python run by `executor` (see `Python`), and `Find` if there are `facts`."""
    tools: list[Tool] = [Calculator(), Python(executor)]
    if facts is not None:
        tools.append(Find(facts))
    return tools


def check_arguments(tool: Tool, args: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of a call, in words for the model; None if they fit."""
    if set(args) == set(tool.parameters) and all(isinstance(each, str) for each in args.values()):
        return None
    wanted = " and ".join(tool.parameters)
    return f"{tool.name} takes {wanted}, as text, and nothing else"
