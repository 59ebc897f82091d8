"""One played episode, and its JSONL form.

Episodes are the only training data of the library: whatever an agent did in a task is an
`Episode`, whichever shell it was played through.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from itl_env.dialogue import Message
from itl_env.errors import ConfigError, ITLError
from itl_env.facts import Fact
from itl_env.files import check_place, whole_file
from itl_env.samples import Sample, Step

SCHEMA_VERSION = 1
_PACKAGES = ("itl", "gymnasium", "sqlalchemy", "torch", "transformers")


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    OUT_OF_TURNS = "out_of_turns"


class Completion(NamedTuple):
    """What an agent wrote in one turn.

    text: the turn as text.
    token_ids: the ids that were sampled, kept so that they are never re-encoded from text;
        None for agents without tokens.
    finish_reason: `stop` if the agent ended its turn, `length` if it was cut, `error` if the
        agent itself failed.
    kind: what the agent meant, where it says so apart from the text (NanoLlama's end marks do);
        None leaves that to the parser.
    """

    text: str
    token_ids: list[int] | None = None
    finish_reason: Literal["stop", "length", "error"] = "stop"
    kind: Literal["query", "answer"] | None = None


class ToolTurn(NamedTuple):
    """What one turn of tool calling came to.

    call: the call, if it was one. result: what the tool replied to it.
    final: the answer, if it was one.
    error: the code of what was wrong with the turn or the call.
    bare: whether the turn held its JSON object and nothing else.
    """

    call: Step | None = None
    result: str | None = None
    final: str | None = None
    error: str | None = None
    bare: bool = False

    @property
    def is_valid(self) -> bool:
        """Whether the turn was an object of one of the forms."""
        return self.call is not None or self.final is not None

    def to_dict(self) -> dict[str, Any]:
        """The turn as plain JSON values."""
        return {**self._asdict(), "call": self.call and self.call._asdict()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "ToolTurn":
        """The inverse of `to_dict`; raises TypeError on a row of another shape."""
        return cls(**{**row, "call": row["call"] and Step(**row["call"])})


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode.

    fact: the fact asked for, with its gold value; in tool calling see `Sample.fact`.
    messages: the whole dialogue, in order.
    completions: one for each assistant message, as the agent produced it.
    answer: the value read from the final turn; None if the episode ended without an answer.
    rewards: the parts of the reward by name; `reward` is their weighted sum.
    error: the code of the last error reply, or None.
    index, seed: the episode's place in its rollout and the rollout's seed.
    aliases: other ways to write the fact's value, which are as right.
    sample, turns, max_turns: what was asked in tool calling, what each turn came to, and how many
        there might have been.
    """

    fact: Fact
    messages: tuple[Message, ...]
    completions: tuple[Completion, ...]
    answer: str | None
    reward: float
    rewards: Mapping[str, float]
    stop_reason: StopReason
    n_queries: int
    error: str | None = None
    index: int = 0
    seed: int = 0
    agent: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    sample: Sample | None = None
    turns: tuple[ToolTurn, ...] = ()
    max_turns: int = 0

    def to_json(self) -> str:
        """One line of JSONL (without the newline), with the schema's version."""
        return json.dumps({"schema": SCHEMA_VERSION, **self.to_dict()}, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The episode as plain JSON values, for a DataFrame or a file."""
        return {
            "index": self.index,
            "seed": self.seed,
            "agent": self.agent,
            "fact": self.fact._asdict(),
            "messages": [message._asdict() for message in self.messages],
            "completions": [completion._asdict() for completion in self.completions],
            "answer": self.answer,
            "reward": self.reward,
            "rewards": dict(self.rewards),
            "stop_reason": str(self.stop_reason),
            "n_queries": self.n_queries,
            "error": self.error,
            "versions": dict(self.versions),
            **({"aliases": list(self.aliases)} if self.aliases else {}),
            **self._tool_fields(),
        }

    def _tool_fields(self) -> dict[str, Any]:
        """What episodes of tool calling hold besides."""
        if self.sample is None:
            return {}
        return {
            "sample": self.sample.to_dict(),
            "turns": [turn.to_dict() for turn in self.turns],
            "max_turns": self.max_turns,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Episode":
        """The inverse of `to_dict`; raises KeyError or TypeError on a row of another shape."""
        return cls(
            fact=Fact(**row["fact"]),
            messages=tuple(Message(**message) for message in row["messages"]),
            completions=tuple(Completion(**completion) for completion in row["completions"]),
            answer=row["answer"],
            reward=row["reward"],
            rewards=row["rewards"],
            stop_reason=StopReason(row["stop_reason"]),
            n_queries=row["n_queries"],
            error=row["error"],
            index=row["index"],
            seed=row["seed"],
            agent=row["agent"],
            versions=row["versions"],
            aliases=tuple(row.get("aliases", ())),
            sample=Sample.from_dict(row["sample"]) if "sample" in row else None,
            turns=tuple(map(ToolTurn.from_dict, row.get("turns", ()))),
            max_turns=row.get("max_turns", 0),
        )


@cache
def package_versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Versions of packages, by default those that shape an episode, as far as installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_episodes(episodes: Iterable[Episode], path: str | Path) -> int:
    """Write episodes as JSONL, one a line, and return how many.

    The file appears under its name only when it is whole. Raises ConfigError if it cannot be
    written.
    """
    count = 0
    # Model text may hold lone surrogates; JSON carries them as escapes.
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for episode in episodes:
            file.write(episode.to_json() + "\n")
            count += 1
    return count


def append_episodes(episodes: Iterable[Episode], path: str | Path) -> int:
    """Write episodes as `write_episodes` does, but keep what is there if they end in an error.

    They are written to `unfinished(path)`, behind those that are there already, and the file gets
    its name when all have come. Returns how many were written now. Raises ConfigError if it cannot
    be written.
    """
    check_place(Path(path))
    partial = unfinished(path)
    count = 0
    try:
        file = partial.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"Cannot write {partial}: {error.strerror}.") from error
    with file:
        for episode in episodes:
            file.write(episode.to_json() + "\n")
            file.flush()
            count += 1
    partial.replace(path)
    return count


def unfinished(path: str | Path) -> Path:
    """Where episodes are that `append_episodes` has not written to the end."""
    return Path(f"{path}.partial")


def begun_episodes(path: str | Path) -> list[Episode]:
    """The episodes that `append_episodes` has left, if any; a last one that was cut is removed.

    Raises what `read_episodes` raises.
    """
    partial = unfinished(path)
    if not partial.exists():
        return []
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        partial.write_bytes(whole)
    return list(read_episodes(partial))


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """Read episodes from JSONL, one at a time.

    Raises ITLError that names the file and line if it is missing, not JSON, or of a schema this
    version does not know.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ITLError(f"Cannot read episodes from {path}: {error.strerror}.") from None
    with file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                schema = row.pop("schema", None)
            except (ValueError, TypeError, AttributeError):
                raise ITLError(f"{where} is not an episode: expected one JSON object.") from None
            if schema is None:
                raise ITLError(
                    f"{where} is not an episode: it names no schema; `itl rollout` writes episodes."
                )
            if schema != SCHEMA_VERSION:
                raise ITLError(
                    f"{where} has episode schema {schema!r}; this version reads {SCHEMA_VERSION}."
                )
            try:
                yield Episode.from_dict(row)
            except (KeyError, TypeError, ValueError, ConfigError) as error:
                raise ITLError(f"{where} is not a whole episode: {error!r}.") from None
