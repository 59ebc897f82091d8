"""The commands of `itl`: for each, the dataclass of its flags and the function that runs it.

A function prints what a public function of the library returns. What needs torch is imported when
it runs.
"""

import os
import shutil
import sys
import time
from collections import deque
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.quickstart import QuickstartConfig
from benchmarks.rollouts import Mode, Questions
from itl_env.database import FactDatabase
from itl_env.dialogue import Dialect, Style
from itl_env.episode import Episode, read_episodes, write_episodes
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_train.memory_config import MemoryConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table of facts."""

    database: str  # URL or SQLite file of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that holds the names

    def open(self) -> FactDatabase:
        """The database, opened for reading."""
        return FactDatabase(self.database, table=self.table, key=self.key)


# -- quickstart ------------------------------------------------------------------------------


def run_quickstart(config: QuickstartConfig) -> None:
    """Run the whole loop and print its result."""
    from benchmarks.progress import TrainingProgress
    from benchmarks.quickstart import quickstart, table

    n_steps = {"in-tool": config.n_steps, "in-weight": config.n_twin_steps}
    with TrainingProgress(n_steps) as progress:
        results = quickstart(config, partial(print, flush=True), progress)
    print(f"\n{table(results)}\n")
    print(f"{results['seconds']['in all']:.0f} s; see {config.out / 'report.md'}")


# -- facts -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FactsBuild:
    """Make a database of people, each with a unique name and four attributes."""

    database: str  # URL or SQLite file to write, such as sqlite:///facts.db
    people: int  # how many people to make
    vocabulary: str = "paper"  # word lists: paper, large, ood, or a folder with lists of your own
    seed: int = 0  # drives every name and value
    correlation: float = 0.0  # share of values that people inherit from their family, 0 to 1
    table: str = "people"  # the table to make
    replace: bool = False  # drop a table of that name first


def facts_build(config: FactsBuild) -> None:
    """Make the database and print how much it holds."""
    from benchmarks.progress import Progress
    from itl_env.facts import ATTRIBUTES, Vocabulary, people, world_entropy

    own = Path(config.vocabulary)
    words = Vocabulary.from_folder(own) if own.is_dir() else Vocabulary.load(config.vocabulary)
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

    with config.open() as database:
        rows = track(database.rows(), "rows", len(database))
        if config.format == "dataset":
            if config.out.exists():
                raise ConfigError(f"Cannot write {config.out}: it exists; name another folder.")
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


# -- the task --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskSource(Source):
    """A table of facts, and how its facts are asked for."""

    attributes: tuple[str, ...] = ()  # columns that are asked for; all but the key by default
    style: Style = "compact"  # how an expert writes a call: the bare line, or a fenced block
    dialect: Dialect = "lookup"  # FIND attribute FOR name, or one SELECT (SQLite files only)


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
        attributes = config.attributes or database.attributes
        n_people = min(config.limit or len(database), len(database))
        with Progress("episodes", 2 * n_people * len(attributes)) as progress:
            validation = validate(
                database,
                attributes=attributes,
                style=config.style,
                dialect=config.dialect,
                limit=n_people,
                seed=config.seed,
                on_progress=progress.at,
            )
    print(f"{validation.n_people:,} names with {validation.n_attributes} attributes each")
    print(table(validation))
    if validation.problems:
        raise ITLError(f"{validation.problems[0]}.")
    print("valid: every gold call and answer scores 1.0, and chance is chance.")


@dataclass(frozen=True, kw_only=True)
class Play(TaskSource):
    """Answer questions yourself: you see what an agent sees, and get its reward."""

    mode: Mode = "in-tool"  # with the database to query, or from memory
    n: int = 0  # questions; 0 for as many as there are
    seed: int = 0  # drives the order of the questions


def run_play(config: Play) -> None:
    """Play until the questions or the person's lines end."""
    from benchmarks.play import play, read_line

    with config.open() as database:
        task = RecallTask(
            database,
            attributes=config.attributes or None,
            style=config.style,
            dialect=config.dialect,
            max_queries=1 if config.mode == "in-tool" else 0,
        )
        play(task, seed=config.seed, n=config.n or None, read=read_line)


@dataclass(frozen=True, kw_only=True)
class Rollout(TaskSource):
    """Let an agent play and write its episodes to a file."""

    agent: str  # expert, no-tool, random, or the folder of a trained model
    out: Path  # JSON lines file for the episodes
    mode: Mode = "in-tool"  # with the database to query, or without
    n: int = 1000  # how many episodes to play
    start: int = 0  # index of the first person who is asked about
    questions: Questions = "one"  # of each person: one attribute in turn, or all of them
    temperature: float = 0.0  # of a trained model; 0 takes the likeliest token
    lanes: int = 256  # episodes side by side
    seed: int = 0  # drives whatever the agent draws

    def __post_init__(self) -> None:
        _check_slice(self.n, self.start, self.lanes, self.temperature)


def _people_from(database: FactDatabase, start: int) -> slice:
    if start >= len(database):
        raise ConfigError(
            f"table {database.table!r} of {database.url} holds {len(database):,} people, so there "
            f"are none from index {start:,}; lower --start."
        )
    return slice(start, None)


def _check_slice(n: int, start: int, lanes: int, temperature: float) -> None:
    for name, value in (("n", n), ("lanes", lanes)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    for name, number in (("start", start), ("temperature", temperature)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; it must not be negative.")


def run_rollout(config: Rollout) -> None:
    """Write the episodes and print the recall."""
    from benchmarks.progress import track
    from benchmarks.rollouts import counted, describe, how_many, make_agent, questions
    from itl_agents.agent import rollout
    from itl_agents.evaluate import RecallCount

    with config.open() as database:
        task = RecallTask(
            database,
            keys=_people_from(database, config.start),
            attributes=config.attributes or None,
            style=config.style,
            dialect=config.dialect,
            max_queries=1 if config.mode == "in-tool" else 0,
        )
        agent = make_agent(config.agent, task, config.temperature)
        facts = questions(task, config.questions, config.n)
        count = RecallCount()
        episodes = rollout(agent, task, facts, seed=config.seed, lanes=config.lanes)
        total = how_many(task, config.questions, config.n)
        write_episodes(counted(track(episodes, "episodes", total), count), config.out)
        task.close()
    print(f"{agent.name}, {config.mode}: {describe(count)}")
    print(f"{count.asked:,} episodes in {config.out}")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print episodes as a model is trained on them, with what is trained marked."""

    file: tyro.conf.Positional[Path]  # JSON lines file of `itl rollout`
    index: int = 0  # the first episode to print, counted from 0
    n: int = 3  # how many to print
    color: Literal["auto", "always", "never"] = "auto"
    """Colours, or else [brackets]; auto colours on a terminal unless NO_COLOR is set."""


def run_show(config: Show) -> None:
    """Print the episodes, each under a line that says how it ended."""
    from itl_agents.nanollama.tokenizer import ByteTokenizer
    from itl_agents.render import bracketed, coloured, render

    if config.index < 0 or config.n < 1:
        raise ConfigError("index must not be negative, and n must be at least 1.")
    colours = config.color == "always" or (
        config.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    stop = config.index + config.n
    episodes = list(islice(read_episodes(config.file), config.index, stop))
    if not episodes:
        raise ITLError(f"{config.file} has no episode {config.index}.")
    tokenizer = ByteTokenizer()
    mark = "\033[32mgreen\033[0m" if colours else "[brackets]"
    print(f"What is trained is in {mark}.")
    for episode in episodes:
        print(f"\n{_headline(episode)}")
        print((coloured if colours else bracketed)(render(episode, tokenizer), tokenizer))


def _headline(episode: Episode) -> str:
    fact = episode.fact
    ending = f"error {episode.error}" if episode.error else str(episode.stop_reason)
    return (
        f"episode {episode.index} by {episode.agent}: {fact.attribute} of {fact.name!r} is "
        f"{fact.value!r}; reward {episode.reward:g}, {ending}"
    )


# -- training and evaluation -----------------------------------------------------------------


@dataclass(frozen=True)
class TrainMemory(MemoryConfig):
    """Train a small Llama on the expert's episodes: to know facts, or to look them up.

    The folder can be interrupted at any time; the same command goes on.
    """

    out: Path = Path("runs/memory")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def run_train_memory(config: TrainMemory) -> None:
    """Train, and print the recall at the end."""
    from benchmarks.progress import TrainingProgress
    from benchmarks.statistics import percent
    from itl_train.memory import train_memory

    settings = MemoryConfig(
        **{field.name: getattr(config, field.name) for field in fields(MemoryConfig)}
    )
    with TrainingProgress({config.mode: config.n_steps}) as progress:
        last = train_memory(settings, config.out, partial(progress, config.mode))
    for who, about in (("seen", "people trained on"), ("unseen", "unseen people")):
        if f"asked_{who}" in last:
            recall = percent(last[f"right_{who}"], last[f"asked_{who}"])
            print(f"step {last['step']:,}: recall {recall} on {about}")
    print(f"the run is in {config.out}")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Ask a trained model about people of a database, by default those its run did not train on.

    Where the model belongs to a run, what is left out here is taken from its config.yaml.
    """

    model: tyro.conf.Positional[Path]  # folder of a run or a checkpoint
    database: str = ""  # URL or SQLite file of the fact database; the run's own by default
    table: str = ""  # its table of facts; the run's, else people
    key: str = ""  # the column that holds the names; the run's, else name
    mode: Literal["", "in-tool", "in-weight"] = ""  # with the database or without; as in the run
    style: Literal["", "compact", "fenced"] = ""  # how calls are written; as in the run
    start: int = -1  # index of the first person; -1 for the first that the run did not train on
    n: int = 1000  # how many questions to ask
    questions: Questions = "one"  # of each person: one attribute in turn, or all of them
    samples: int = 3  # answers to print
    temperature: float = 0.0  # 0 takes the likeliest token
    lanes: int = 256  # episodes side by side
    seed: int = 0  # drives what is drawn where temperature is above 0
    out: str = ""  # JSON lines file for the episodes; none by default

    def __post_init__(self) -> None:
        _check_slice(self.n, max(self.start, 0), self.lanes, self.temperature)


def run_eval(config: Eval) -> None:
    """Print the recall with its interval, and a few answers."""
    from benchmarks.progress import track
    from benchmarks.rollouts import (
        counted,
        describe,
        how_many,
        make_agent,
        questions,
        quoted,
        run_settings,
    )
    from itl_agents.agent import rollout
    from itl_agents.evaluate import RecallCount

    run = run_settings(config.model)
    url = config.database or run.get("database")
    if not url:
        raise ConfigError(f"{config.model} belongs to no run; name a database with --database.")
    source = Source(
        database=url,
        table=config.table or run.get("table", "people"),
        key=config.key or run.get("key", "name"),
    )
    mode = config.mode or run.get("mode", "in-tool")
    n_trained = run.get("n_people", 0)
    first = n_trained if config.start < 0 else config.start
    with source.open() as database:
        task = RecallTask(
            database,
            keys=_people_from(database, first),
            style=config.style or run.get("style", "compact"),
            max_queries=1 if mode == "in-tool" else 0,
        )
        agent = make_agent(str(config.model), task, config.temperature)
        total = how_many(task, config.questions, config.n)
        facts = questions(task, config.questions, config.n)
        count = RecallCount()
        played = rollout(agent, task, facts, seed=config.seed, lanes=config.lanes)
        episodes = counted(track(played, "questions", total), count)
        samples = list(islice(episodes, config.samples)) if not config.out else []
        if config.out:
            write_episodes(episodes, config.out)
            samples = list(islice(read_episodes(config.out), config.samples))
        else:
            deque(episodes, maxlen=0)
    print(f"{agent.name}, {mode}, people from index {first:,}: {describe(count)}")
    for episode in samples:
        verdict = "right" if episode.reward == 1.0 else f"wrong, it is {episode.fact.value!r}"
        print(f"  {episode.messages[0].content}  {quoted(_last_words(episode))}  {verdict}")


def _last_words(episode: Episode) -> str:
    return episode.completions[-1].text


# -- studies ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchList:
    """List the studies that `itl bench run` knows."""


def bench_list(config: BenchList) -> None:
    """Print every study with its summary."""
    from benchmarks.cli import STUDIES

    width = max(map(len, STUDIES))
    for name, study in STUDIES.items():
        print(f"{name:<{width}}  {study.summary}")
