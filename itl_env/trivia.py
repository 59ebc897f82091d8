"""Trivia questions as facts: a table of questions whose answers have aliases.

    from itl_env.trivia import SAMPLE, create_trivia, read_trivia, trivia_task
    create_trivia("sqlite:///trivia.db", read_trivia(SAMPLE))
    task = trivia_task("sqlite:///trivia.db")

The question is the name, `answer` the only attribute, and whatever the table holds as an alias of
an answer counts as that answer.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from itl_env.database import FactDatabase
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask

TABLE, KEY, ANSWER, ALIASES = "questions", "question", "answer", "aliases"
SAMPLE = Path(__file__).parent / "trivia_sample.jsonl"
"""A few questions of our own, to try things with."""
PHRASING = {ANSWER: {"question": "{name}", "statement": "{value}"}}


class Trivia(NamedTuple):
    """One question; a row of the table."""

    question: str
    answer: str
    aliases: str  # a JSON list


def trivia(question: str, answer: str, aliases: Iterable[str] = ()) -> Trivia:
    """A question with its answer and what counts as the same.

    A text instead of several is one alias. Raises TypeError for what is no text.
    """
    aliases = [aliases] if isinstance(aliases, str) else list(aliases)
    if not all(isinstance(text, str) for text in (question, answer, *aliases)):
        raise TypeError("question, answer and aliases must be text.")
    others = [alias for alias in dict.fromkeys(aliases) if alias != answer]
    return Trivia(question, answer, json.dumps(others, ensure_ascii=False))


def read_trivia(file: str | Path) -> Iterator[Trivia]:
    """The questions of a file of JSON lines with `question`, `answer` and `aliases`.

    Raises ITLError that names the line which is none.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ITLError(f"Cannot read questions from {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ITLError(f"Cannot read questions from {path}: it is no text in UTF-8.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield trivia(row["question"], row["answer"], row.get("aliases", ()))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ITLError(
                f"{path}, line {number} is no question: expected a JSON object with question, "
                "answer and aliases."
            ) from None


def hub_trivia(split: str = "validation", n: int | None = None) -> Iterator[Trivia]:
    """TriviaQA from the hub (Joshi et al. 2017, arXiv 1705.03551), without its documents.

    split: train (138,384 questions) or validation (17,944). n: the first of them; all by default.

    Raises ITLError if the hub cannot be reached.
    """
    import datasets

    try:
        rows = datasets.load_dataset("mandarjoshi/trivia_qa", "rc.nocontext", split=split)
    except Exception as error:  # it raises what its readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ITLError(
            f"TriviaQA cannot be had from the hub: {reason.rstrip('.')}; a file of questions "
            "serves as well."
        ) from error
    for row in rows if n is None else rows.select(range(min(n, len(rows)))):
        yield of_hub(row)


def of_hub(row: Mapping[str, Any]) -> Trivia:
    """The question in a row of the hub's data."""
    found = row["answer"]
    return trivia(row["question"], found["value"], found["aliases"])


def create_trivia(
    database: str | Path, questions: Iterable[Trivia], *, replace: bool = False
) -> int:
    """Write a table of questions, each once, and return how many there are.

    See `FactDatabase.create` for what is raised.
    """
    seen: set[str] = set()

    def once() -> Iterator[Trivia]:
        for each in questions:
            if each.question not in seen:
                seen.add(each.question)
                yield each

    FactDatabase.create(database, once(), table=TABLE, key=KEY, replace=replace).close()
    return len(seen)


def trivia_task(database: str | Path, **settings: Any) -> RecallTask:
    """The task over a table of `create_trivia`: answers are compared as TriviaQA compares them.

    settings: of `RecallTask`, such as keys and max_queries.
    """
    return task_over(open_trivia(database), **settings)


def open_trivia(database: str | Path) -> FactDatabase:
    """The table of `create_trivia` in a database."""
    return FactDatabase(database, table=TABLE, key=KEY)


def task_over(questions: FactDatabase, **settings: Any) -> RecallTask:
    """The same of a database that is open; raises ConfigError for settings that are its own."""
    if taken := {"aliases", "own_phrasings", "attributes"} & set(settings):
        raise ConfigError(f"{sorted(taken)[0]} is the trivia task's own.")
    return RecallTask(
        questions, aliases=ALIASES, own_phrasings=PHRASING, **{"rubric": "trivia", **settings}
    )
