"""Rewards as pure functions of what happened.

An answer about a fact is right when its value is exactly right: compared after normalisation
(Unicode NFC, letter case, surrounding space, one final full stop), never by substring or suffix:
"1/5/1990" does not match "21/5/1990". In tool calling it is right when what was executed came to
what is expected (`Rubric.outcome`), or by the published rules (`Rubric.classic`).
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from itl_env.calculator import CalculatorError, calculate, is_constant, same_number
from itl_env.episode import StopReason, ToolTurn
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.python_code import is_constant_code, same_code
from itl_env.samples import Sample, Step


class Transcript(Protocol):
    """What a component may look at; a finished task state and an `Episode` both have it."""

    @property
    def fact(self) -> Fact: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def stop_reason(self) -> StopReason | None: ...
    @property
    def n_queries(self) -> int: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


class ToolTranscript(Protocol):
    """The same for tool calling."""

    @property
    def sample(self) -> Sample | None: ...
    @property
    def turns(self) -> Sequence[ToolTurn]: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def stop_reason(self) -> StopReason | None: ...


T = TypeVar("T")


class Component(NamedTuple, Generic[T]):
    """One part of a reward: its name, its weight and the function that scores a transcript."""

    name: str
    weight: float
    score: Callable[[T], float]


class Score(NamedTuple):
    """A total reward and its parts, unweighted, by name."""

    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Rubric(Generic[T]):
    """A weighted sum of components."""

    components: tuple[Component[T], ...]

    def __call__(self, transcript: T) -> Score:
        total = 0.0
        parts = {}
        for name, weight, score in self.components:
            parts[name] = score(transcript)
            total += weight * parts[name]
        return Score(total, parts)

    @staticmethod
    def outcome() -> "Rubric[ToolTranscript]":
        """The reward of tool calling: 1 for what is right, less 0.1 for a turn of neither form."""
        return TOOL_RUBRICS["outcome"]

    @staticmethod
    def classic() -> "Rubric[ToolTranscript]":
        """The published reward of tool calling, which does not look at what comes of a call.

        A direct answer earns 1.5 where no tool is needed, whatever it says, and 0.5 elsewhere; a
        call that spells its result earns as much as one that computes it.
        """
        return TOOL_RUBRICS["classic"]


def normalise(value: str) -> str:
    """The form in which values are compared."""
    text = unicodedata.normalize("NFC", value.strip()).casefold()
    return text.removesuffix(".").rstrip()


def is_exact(transcript: Transcript) -> float:
    """1.0 if the answered value equals the fact's value, or an alias, after normalisation."""
    answer, value = transcript.answer, transcript.fact.value
    if answer is None:
        return 0.0
    if answer == value:
        return 1.0
    said = normalise(answer)
    return float(any(said == normalise(gold) for gold in (value, *transcript.aliases)))


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_trivia(value: str) -> str:
    """The form in which TriviaQA compares answers: no case, punctuation, articles or extra space.

    (Joshi et al. 2017, arXiv 1705.03551, section 6.) Marks become spaces, those of all scripts.
    """
    text = unicodedata.normalize("NFC", value).casefold()
    kept = "".join(
        " " if c in string.punctuation or unicodedata.category(c).startswith("P") else c
        for c in text
    )
    return " ".join(_ARTICLES.sub(" ", kept).split())


def is_trivia_answer(transcript: Transcript) -> float:
    """1.0 if the answer equals the value or an alias as TriviaQA compares them."""
    if transcript.answer is None:
        return 0.0
    said = normalise_trivia(transcript.answer)
    right = (transcript.fact.value, *transcript.aliases)
    return float(bool(said) and any(said == normalise_trivia(gold) for gold in right))


def contains_value(transcript: Transcript) -> float:
    """1.0 if the value appears anywhere in the answer: a lenient figure, never the default."""
    answer = transcript.answer
    return float(answer is not None and normalise(transcript.fact.value) in normalise(answer))


RUBRICS: dict[str, Rubric[Transcript]] = {
    "exact": Rubric((Component("exact", 1.0, is_exact),)),
    "trivia": Rubric((Component("trivia", 1.0, is_trivia_answer),)),
    "lenient": Rubric((Component("lenient", 1.0, contains_value),)),
}


def rubric_named(name: str) -> Rubric[Transcript]:
    """The rubric of that name; raises ConfigError if there is none."""
    try:
        return RUBRICS[name]
    except KeyError:
        raise ConfigError(
            f"There is no rubric {name!r}; choose among {', '.join(RUBRICS)}."
        ) from None


# -- tool calling ----------------------------------------------------------------------------------


def has_form(transcript: ToolTranscript) -> float:
    """Share of turns that are an object of one of the forms."""
    return _mean(float(turn.is_valid) for turn, _ in _pairs(transcript))


def lacks_form(transcript: ToolTranscript) -> float:
    """The same, less 1: 0.0 if all turns have the form, -1.0 if none has it."""
    return has_form(transcript) - 1.0


def has_right_tool(transcript: ToolTranscript) -> float:
    """0.5 for the right tool (or for answering, where that is due), -0.5 for another, 0.0 for a
    turn that is neither; the mean over turns.
    """
    return _mean(_right_tool(turn, step) for turn, step in _pairs(transcript))


def has_right_args(transcript: ToolTranscript) -> float:
    """1.0 for a call of the right tool with arguments that mean the same; the mean over turns.

    Expressions mean the same if their values agree within 1e-6, or, where one cannot be evaluated,
    if they are spelled alike; code, if its syntax trees are equal.
    """
    return _mean(float(_right_args(turn, step)) for turn, step in _pairs(transcript))


def is_wordy(transcript: ToolTranscript) -> float:
    """-0.2 for a turn with anything around its JSON object, or without one; the mean over turns."""
    return _mean(0.0 if turn.bare else -0.2 for turn, _ in _pairs(transcript))


def is_right_outcome(transcript: ToolTranscript) -> float:
    """1.0 if the answer is what is expected and, where a tool is needed, was computed by one."""
    sample, answer = transcript.sample, transcript.answer
    assert sample is not None
    if answer is None or not says(answer, sample):
        return 0.0
    computed = any(
        turn.result is not None and not is_spelled(turn.call) for turn in transcript.turns
    )
    return float(computed or not sample.tool_needed)


def says(answer: str, sample: Sample) -> bool:
    """Whether an answer, or the result of a call, is what the sample expects.

    Numbers agree within the sample's tolerance, text after `normalise`. A number may be written
    with a leading dollar sign, separators of thousands and a final full stop.
    """
    if sample.answer_type == "number":
        said, expected = read_number(answer), read_number(sample.expected_answer)
        if said is not None and expected is not None:
            return same_number(said, expected, sample.tolerance)
    return normalise(answer) == normalise(sample.expected_answer)


_NUMBER = re.compile(r"([+-]?)\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(e[+-]?\d{1,3})?", re.ASCII)


def read_number(text: str) -> float | None:
    """The number that a text is; None if it is anything else."""
    match = _NUMBER.fullmatch(normalise(text)) if len(text) <= 400 else None
    if match is None:
        return None
    sign, whole, fraction, exponent = match.groups(default="")
    return float(sign + whole.replace(",", "") + fraction + exponent)


def is_spelled(call: Step | None) -> bool:
    """Whether a call spells its result instead of computing it: `6`, or `print(6)`."""
    if call is None:
        return False
    if call.tool == "calculator":
        return is_constant(call.args["expression"])
    return call.tool == "python" and is_constant_code(call.args["code"])


def _pairs(transcript: ToolTranscript) -> list[tuple[ToolTurn, Step | None]]:
    """Each turn with the call that was due, None for the final answer.

    Where an episode has one turn, no answer is due after a call. Turns that never came are there
    as empty ones.
    """
    sample, turns = transcript.sample, list(transcript.turns)
    assert sample is not None
    due: list[Step | None] = [*sample.steps, None]
    if sample.steps and len(turns) == 1:
        due.pop()
    n = max(len(turns), len(due))
    turns += [ToolTurn()] * (n - len(turns))
    due += [None] * (n - len(due))
    return list(zip(turns, due, strict=True))


def _right_tool(turn: ToolTurn, due: Step | None) -> float:
    if not turn.is_valid:
        return 0.0
    called = None if turn.call is None else turn.call.tool
    return 0.5 if called == (None if due is None else due.tool) else -0.5


def _right_args(turn: ToolTurn, due: Step | None) -> bool:
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
