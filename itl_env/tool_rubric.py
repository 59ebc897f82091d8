"""Rewards of tool calling: for what came of the calls, or by the published rules."""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from itl_env.calculator import CalculatorError, calculate, is_constant, same_number
from itl_env.episode import StopReason, ToolTurn
from itl_env.errors import ConfigError
from itl_env.python_code import is_constant_code, same_code
from itl_env.rubric import Component, Rubric, normalise
from itl_env.samples import TOLERANCE, Sample, Step


class ToolTranscript(Protocol):
    """What a component may look at; a task's state and an `Episode` both have it.

    max_turns: that the episode might have had; with 1, nothing is due after a call.
    """

    @property
    def sample(self) -> Sample | None: ...
    @property
    def turns(self) -> Sequence[ToolTurn]: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def stop_reason(self) -> StopReason | None: ...
    @property
    def max_turns(self) -> int: ...


# -- what came of it: `Rubric.outcome`


def lacks_form(transcript: ToolTranscript) -> float:
    """`has_form` less 1: 0.0 if all turns have the form, -1.0 if none has it."""
    return has_form(transcript) - 1.0


def is_right_outcome(transcript: ToolTranscript) -> float:
    """1.0 if what is expected was said and, where a tool is needed, came of a call.

    A call counts whose result is what is expected, unless it spells the result. Where an episode
    has one turn, that is all; where it has more, the final answer must say it, too. Where no tool
    is needed, the final answer must say it, and a call does not.
    """
    sample = transcript.sample
    assert sample is not None
    final = transcript.turns[-1].final if transcript.turns else None
    said = final is not None and says(final, sample)
    if not sample.tool_needed:
        return float(said)
    computed = any(
        turn.result is not None and came(turn.result, sample) and not is_spelled(turn.call)
        for turn in transcript.turns
    )
    return float(computed and (said or transcript.max_turns == 1))


def says(answer: str, sample: Sample) -> bool:
    """Whether a final answer is what the sample expects.

    Numbers are compared as numbers, text after `normalise`. A number may be written with a leading
    dollar sign, separators of thousands and a final full stop.
    """
    if (same := _same_numbers(answer, sample)) is not None:
        return same
    return normalise(answer) == normalise(sample.expected_answer)


def came(result: str, sample: Sample) -> bool:
    """Whether the result of a call is what the sample expects: text letter by letter, but for space
    at its ends.
    """
    if (same := _same_numbers(result, sample)) is not None:
        return same
    return result.strip() == sample.expected_answer.strip()


def _same_numbers(text: str, sample: Sample) -> bool | None:
    """Whether two numbers are the same; None if the sample expects none, or one of them is none.

    The sample's tolerance is relative to what is expected, but absolute where a whole number is
    expected and the sample sets no tolerance of its own; see `same_number`.
    """
    if sample.answer_type != "number":
        return None
    said, expected = read_number(text), read_number(sample.expected_answer)
    if said is None or expected is None:
        return None
    own = None if sample.tolerance == TOLERANCE else sample.tolerance
    return same_number(said, expected, own)


_NUMBER = re.compile(r"([+-]?)\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(e[+-]?\d{1,3})?", re.ASCII)


def read_number(text: str) -> int | float | None:
    """The number that a text is; None if it is anything else."""
    match = _NUMBER.fullmatch(normalise(text)) if len(text) <= 400 else None
    if match is None:
        return None
    sign, whole, fraction, exponent = match.groups(default="")
    digits = sign + whole.replace(",", "")
    return float(digits + fraction + exponent) if fraction or exponent else int(digits)


def is_spelled(call: Step | None) -> bool:
    """Whether a call spells its result instead of computing it: `6`, or `print(6)`."""
    if call is None:
        return False
    if call.tool == "calculator":
        return is_constant(call.args["expression"])
    return call.tool == "python" and is_constant_code(call.args["code"])


# -- the published rules: `Rubric.classic`


def has_form(transcript: ToolTranscript) -> float:
    """Share of turns that are an object of one of the forms."""
    return _mean(float(turn.is_valid) for turn in _taken(transcript))


def is_wordy(transcript: ToolTranscript) -> float:
    """-0.2 for a turn with anything around its JSON object, or without one; the mean over turns."""
    return _mean(0.0 if turn.bare else -0.2 for turn in _taken(transcript))


def has_right_tool(transcript: ToolTranscript) -> float:
    """0.5 for the right tool (or for answering, where that is due), -0.5 for another, 0.0 for a
    turn that is neither or never came; the mean over turns.
    """
    return _mean(_right_tool(turn, step) for turn, step in turns_and_due(transcript))


def has_right_args(transcript: ToolTranscript) -> float:
    """1.0 for a call of the right tool with arguments that mean the same; the mean over turns.

    Expressions mean the same if their values agree within 1e-6, or, where one cannot be evaluated,
    if they are spelled alike; code, if its syntax trees are equal.
    """
    return _mean(float(right_args(turn, step)) for turn, step in turns_and_due(transcript))


def turns_and_due(transcript: ToolTranscript) -> list[tuple[ToolTurn, Step | None]]:
    """Each turn with the call that was due, None for the final answer.

    Where an episode has one turn, no answer is due after a call. Turns that never came are there
    as empty ones.
    """
    sample, turns = transcript.sample, list(transcript.turns)
    assert sample is not None
    due: list[Step | None] = [*sample.steps, None]
    if transcript.max_turns == 1:
        del due[1:]
    n = max(len(turns), len(due))
    turns += [ToolTurn()] * (n - len(turns))
    due += [None] * (n - len(due))
    return list(zip(turns, due, strict=True))


def _taken(transcript: ToolTranscript) -> Sequence[ToolTurn]:
    """The turns that were taken; an empty one if there was none."""
    return transcript.turns or (ToolTurn(),)


def _right_tool(turn: ToolTurn, due: Step | None) -> float:
    if not turn.is_valid:
        return 0.0
    called = None if turn.call is None else turn.call.tool
    return 0.5 if called == (None if due is None else due.tool) else -0.5


def right_args(turn: ToolTurn, due: Step | None) -> bool:
    """Whether a turn is the call that was due, with arguments that mean the same."""
    if turn.call is None or due is None or turn.call.tool != due.tool:
        return False
    given = turn.call.args
    if set(given) != set(due.args) or not all(isinstance(each, str) for each in given.values()):
        return False
    if due.tool == "calculator":
        return _same_value(given["expression"], due.args["expression"])
    if due.tool == "python":
        return same_code(given["code"], due.args["code"])
    return dict(given) == dict(due.args)


def _same_value(expression: str, other: str) -> bool:
    try:
        return abs(calculate(expression) - calculate(other)) <= 1e-6
    except (CalculatorError, OverflowError):
        return expression == other


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


TOOL_RUBRICS: dict[str, Rubric[ToolTranscript]] = {
    "outcome": Rubric(
        (Component("form", 0.1, lacks_form), Component("outcome", 1.0, is_right_outcome))
    ),
    "classic": Rubric(
        (
            Component("format", 1.0, has_form),
            Component("tool", 1.0, has_right_tool),
            Component("args", 1.0, has_right_args),
            Component("length", 1.0, is_wordy),
        )
    ),
}


def tool_rubric_named(name: str) -> Rubric[ToolTranscript]:
    """The rubric of tool calling of that name; raises ConfigError if there is none."""
    try:
        return TOOL_RUBRICS[name]
    except KeyError:
        raise ConfigError(
            f"There is no rubric {name!r}; choose among {', '.join(TOOL_RUBRICS)}."
        ) from None
