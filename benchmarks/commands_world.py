"""Commands of `itl` about databases: `facts build`, `facts query`, `facts export`, `validate`.

A command is the dataclass of its flags and the function that runs it, which prints what a public
function of the library returns. What needs torch is imported when it runs.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from itl_env.connection import parse_url, public_url
from itl_env.database import FactDatabase
from itl_env.dialogue import Dialect, Style
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_env.trivia import (
    ANSWER,
    SAMPLE,
    TABLE,
    create_trivia,
    hub_trivia,
    open_trivia,
    read_trivia,
    task_over,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table of facts."""

    database: str  # URL or SQLite file of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that holds the names

    def open(self) -> FactDatabase:
        """The database, opened for reading."""
        return FactDatabase(self.database, table=self.table, key=self.key)


@dataclass(frozen=True, kw_only=True)
class TaskSource(Source):
    """A table of facts, and how its facts are asked for."""

    attributes: tuple[str, ...] = ()  # columns that are asked for; all but the key by default
    style: Style = "compact"  # how an expert writes a call: the bare line, or a fenced block
    dialect: Dialect = "lookup"  # FIND attribute FOR name, or one SELECT (SQLite files only)
    trivia: bool = False  # the database is one of `itl facts trivia`, whose answers have aliases

    def open(self) -> FactDatabase:
        """The database, opened for reading."""
        return open_trivia(self.database) if self.trivia else super().open()

    def task(self, database: FactDatabase, **settings: Any) -> RecallTask:
        """The task over the database; settings are those of `RecallTask` that are no flags here."""
        settings |= {"style": self.style, "dialect": self.dialect}
        if not self.trivia:
            return RecallTask(database, attributes=self.attributes or None, **settings)
        if self.attributes:
            raise ConfigError("Trivia has one attribute, answer; leave out --attributes.")
        return task_over(database, **settings)


@dataclass(frozen=True, kw_only=True)
class FactsBuild:
    """Make a database of people, each with a unique name and four attributes."""

    database: str  # URL or SQLite file to write, such as sqlite:///facts.db
    people: int  # how many people to make
    vocabulary: str = "paper"  # word lists: paper, large, ood, or the path of a folder of your own
    seed: int = 0  # drives every name and value
    correlation: float = 0.0  # share of values that people inherit from their family, 0 to 1
    table: str = "people"  # the table to make
    replace: bool = False  # drop a table of that name first

    def __post_init__(self) -> None:
        if self.people < 1:
            raise ConfigError(f"people is {self.people}; it must be at least 1.")


def facts_build(config: FactsBuild) -> None:
    """Make the database and print how much it holds."""
    from benchmarks.progress import Progress
    from itl_env.entropy import world_entropy
    from itl_env.facts import ATTRIBUTES, VOCABULARIES, Vocabulary, people

    # The built-in names come first: a folder that happens to be called so must not replace them.
    own = config.vocabulary not in VOCABULARIES and Path(config.vocabulary).is_dir()
    words = (Vocabulary.from_folder if own else Vocabulary.load)(config.vocabulary)
    began = time.perf_counter()
    world = people(config.people, config.seed, words, config.correlation)
    with Progress("people", config.people) as progress:
        database = FactDatabase.create(
            config.database,
            world,
            table=config.table,
            replace=config.replace,
            progress=progress.at,
        )
    seconds = time.perf_counter() - began
    entropy = world_entropy(config.people, words, config.correlation, config.seed)
    print(f"database       {database.url}, table {config.table}")
    print(f"people         {config.people:,}")
    print(f"facts          {config.people * len(ATTRIBUTES):,}")
    print(f"bits per fact  {entropy.bits_per_fact:.2f}")
    if database.path is not None:
        print(f"file size      {database.path.stat().st_size / 1e6:,.1f} MB")
    print(f"seconds        {seconds:.1f}")


@dataclass(frozen=True, kw_only=True)
class FactsTrivia:
    """Make a database of trivia questions, whose answers have aliases."""

    database: str  # URL or SQLite file to write, such as sqlite:///trivia.db
    source: str = "sample"
    """sample: 24 questions of our own; hub: TriviaQA; or a file of JSON lines with question, answer
    and aliases"""
    split: Literal["train", "validation"] = "validation"  # of TriviaQA
    n: int = 0  # how many questions of TriviaQA, the first ones; 0 for all
    replace: bool = False  # drop the table of questions first

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError(f"n is {self.n}; it must not be negative.")


def facts_trivia(config: FactsTrivia) -> None:
    """Make the database and print how much it holds."""
    if config.source == "hub":
        rows = hub_trivia(config.split, config.n or None)
    else:
        rows = read_trivia(SAMPLE if config.source == "sample" else config.source)
    n = create_trivia(config.database, rows, replace=config.replace)
    print(f"{n:,} questions in {public_url(parse_url(config.database))}, table {TABLE}")


@dataclass(frozen=True, kw_only=True)
class FactsQuery(Source):
    """Print what is known about a name; the exit status is 1 if it is unknown."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]  # whom to look up
    attribute: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[ATTRIBUTE]")] = ""
    """What to look up; everything if it is left out."""


def facts_query(config: FactsQuery) -> None:
    """Print one value, or every attribute with its value."""
    with config.open() as database:
        wanted = [config.attribute] if config.attribute else list(database.attributes)
        values = database.lookup([(config.name, attribute) for attribute in wanted])
    if values[0] is None:
        raise ITLError(
            f"no result: table {config.table!r} of {database.url} has no {config.name!r}."
        )
    width = max(map(len, wanted))
    for attribute, value in zip(wanted, values, strict=True):
        print(value if config.attribute else f"{attribute:<{width}}  {value}")


@dataclass(frozen=True, kw_only=True)
class FactsExport(Source):
    """Write all facts of a table to a file."""

    format: Literal["jsonl", "parquet", "biographies", "dataset"]
    """A row a line, Parquet, a paragraph a line, or a folder for `datasets.load_from_disk`."""
    out: Path  # the file (of a dataset, the folder) to write


def facts_export(config: FactsExport) -> None:
    """Write the file and print how many rows it holds."""
    from benchmarks.progress import track
    from itl_env import export

    if config.out.exists():
        raise ConfigError(f"{config.out} exists; name another one, or remove it.")
    with config.open() as database:
        rows = track(database.rows(), "rows", len(database))
        if config.format == "dataset":
            import datasets

            datasets.disable_progress_bars()
            partial_folder = config.out.with_name(f".{config.out.name}.partial")
            shutil.rmtree(partial_folder, ignore_errors=True)
            export.to_dataset(rows).save_to_disk(str(partial_folder))
            partial_folder.rename(config.out)
        else:
            write = {
                "jsonl": export.write_jsonl,
                "parquet": export.write_parquet,
                "biographies": export.write_biographies,
            }[config.format]
            write(rows, config.out)
        print(f"{len(database):,} rows in {config.out}")


@dataclass(frozen=True, kw_only=True)
class Validate(TaskSource):
    """Play every fact of a database and check that what is right scores 1.0, and chance does not.

    The exit status is 1 if a gold call or answer fails.
    """

    limit: int = 0  # people to check, from the first; 0 for all
    seed: int = 0  # drives the random agent


def run_validate(config: Validate) -> None:
    """Print the counts; raises ITLError with the first problem."""
    from benchmarks.progress import Progress
    from benchmarks.validate import table, validate

    if config.limit < 0:
        raise ConfigError(f"limit is {config.limit}; it must not be negative.")
    with config.open() as database:
        attributes = config.attributes or ((ANSWER,) if config.trivia else database.attributes)
        n_people = min(config.limit or len(database), len(database))
        with Progress("episodes", 2 * n_people * len(attributes)) as progress:
            validation = validate(
                database,
                attributes=attributes,
                style=config.style,
                dialect=config.dialect,
                keys=slice(n_people),
                seed=config.seed,
                on_progress=progress.at,
            )
    print(f"{validation.n_people:,} names with {validation.n_attributes} attributes each")
    print(table(validation))
    if validation.problems:
        raise ITLError(f"{validation.problems[0]}.")
    print("valid: every gold call and answer scores 1.0, and chance is chance.")
