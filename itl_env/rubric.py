"""Rewards as pure functions of what happened, and those of fact recall.

An answer is right when its value is exactly right: compared after normalisation (Unicode NFC,
letter case, surrounding space, one final full stop), never by substring or suffix: "1/5/1990" does
not match "21/5/1990". Those of tool calling are in `itl_env.tool_rubric`.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from itl_env.episode import StopReason
from itl_env.errors import ConfigError
from itl_env.facts import Fact

if TYPE_CHECKING:
    from itl_env.tool_rubric import ToolTranscript


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
        from itl_env.tool_rubric import TOOL_RUBRICS

        return TOOL_RUBRICS["outcome"]

    @staticmethod
    def classic() -> "Rubric[ToolTranscript]":
        """The published reward of tool calling, which does not look at what comes of a call.

        A direct answer earns 1.5 where no tool is needed, whatever it says, and 0.5 elsewhere; a
        call that spells its result earns as much as one that computes it.
        """
        from itl_env.tool_rubric import TOOL_RUBRICS

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
