"""Data sets of tool calling: mixed from sources, verified by execution, split by what is called.

    from itl_env.tool_data import Mix, make_data
    report = make_data(Mix(generated=1000, seed=1), "data")  # train.jsonl, validation.jsonl, report

What is made depends on the mix and the rows of its sources only.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from itl_env.connection import lasting_url
from itl_env.data_folder import check_data_folder
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError
from itl_env.files import write_text
from itl_env.generated import ages, generate
from itl_env.samples import Category, Sample, read_samples, write_samples
from itl_env.tool_report import Report, RowCount
from itl_env.tool_rows import HubSource, Rows, hub_rows, read_rows
from itl_env.tool_sources import (
    FIXTURE,
    Refusal,
    gsm8k_samples,
    instruction_samples,
    python_samples,
    verify,
)
from itl_env.tool_split import plain_prompt, seeded_order, split
from itl_env.tools import Python, Tool, standard_tools

TRAIN, VALIDATION, REPORT, REPORT_TEXT = (
    "train.jsonl", "validation.jsonl", "report.json", "report.md",
)  # fmt: skip
HUB, FIXTURE_NAME = "hub", "sample"
GENERATED = "generated "  # before a category; the name of a part

# Generated prompts may repeat: how often one is drawn before the source is said to have no more.
TRIES = 10

# Of so many that are generated in a row, the least share that must be new.
WINDOW, LEAST_NEW = 10_000, 0.1

# A validation part that is smaller than this share of what was asked for is warned of.
ENOUGH = 0.95

OnProgress = Callable[[int, int, str], None]
"""Told how much is done, of how much, and which source is being read."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Of what a data set is made.

    generated: samples of `itl_env.generated`, as many of each of `categories`, of `level`.
    database: the path or URL of a fact database, for the category `mixed` and whatever looks facts
        up.
    gsm8k, python, instructions: samples of each source; None for all that are good.
    gsm8k_from, python_from, instructions_from: `hub`, or a file of rows; of instructions also
        `sample`, a few of our own.
    files: files of samples, all of which are taken.
    validation: the share that is put aside; above 0, since trainers need both parts.
    seed: chooses rows and splits them.
    allow_fewer: whether a source with fewer good rows than asked for is a warning, not an error.

    Raises ConfigError for what cannot be.
    """

    generated: int = 0
    categories: tuple[Category, ...] = ("calculator", "python_exec", "no_tool")
    level: int = 1
    database: str = ""
    gsm8k: int | None = 0
    python: int | None = 0
    instructions: int | None = 0
    gsm8k_from: str = HUB
    python_from: str = HUB
    instructions_from: str = FIXTURE_NAME
    files: tuple[str, ...] = ()
    validation: float = 0.2
    seed: int = 42
    allow_fewer: bool = False

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("generated", *_SOURCES)}
        for name, n in counts.items():
            if n is not None and n < 0:
                raise ConfigError(f"{name} is {n}; it must not be negative.")
        if not any(n != 0 for n in counts.values()) and not self.files:
            raise ConfigError("The mix is empty: it names no source, or none of its samples.")
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation is {self.validation}; it must be above 0 and below 1.")
        if len(set(self.categories)) < len(self.categories) or not self.categories:
            raise ConfigError("categories must name at least one category, and none twice.")
        if "mixed" in self.categories and self.generated and not self.database:
            raise ConfigError("The category 'mixed' looks facts up; name a database.")
        if 0 < self.generated < len(self.categories):
            raise ConfigError(
                f"There are {self.generated} samples to generate, less than one for each of "
                f"{len(self.categories)} categories."
            )


_SOURCES: tuple[HubSource, ...] = ("gsm8k", "python", "instructions")

PUBLISHED = Mix(gsm8k=1600, python=1600, instructions=4800, instructions_from=HUB, allow_fewer=True)
"""The published mix, split 80/20; its labels are other ones, since these are verified."""


class Part(NamedTuple):
    """What one source has to give.

    n: how many samples are wanted; None for all. available: how many rows there are to choose from.
    """

    source: str
    n: int | None
    available: int
    found: Iterator[Sample | Refusal]


def make_data(
    mix: Mix,
    out: str | Path,
    *,
    tools: Sequence[Tool] = (),
    on_progress: OnProgress | None = None,
) -> Report:
    """Write a data set to the folder `out`, and return the report that lies beside it.

    tools: with which calls are verified, besides or in place of a calculator, Python, and `Find`
        where the mix names a database.
    on_progress: see `OnProgress`.

    A folder that holds the data of the same mix is written anew. Warns where a source has fewer
    good rows than wanted (if the mix allows that), or the split cannot be as asked for. Raises
    ConfigError for another folder, bad files, and too few good rows; ITLError if the hub cannot be
    reached.
    """
    folder = Path(out)
    settings = json.loads(json.dumps(dataclasses.asdict(mix)))
    if mix.database:
        settings["database"] = lasting_url(mix.database)
    check_data_folder(folder, {TRAIN, VALIDATION, REPORT_TEXT}, folder / REPORT, settings)
    facts = FactDatabase(mix.database) if mix.database else None
    with ExitStack() as stack:
        given = standard_tools(facts)
        for tool in given:
            stack.callback(tool.close)
        by_name = {tool.name: tool for tool in (*given, *tools)}
        parts = _parts(mix, by_name["python"], facts)
        samples, tallies = _collect(parts, by_name.values(), on_progress)
        notes = [note for tally in tallies if (note := _shortage(tally, mix))]
    aside = split(samples, mix.validation, mix.seed)
    order = seeded_order(len(samples), mix.seed)
    chosen = {
        part: [samples[place] for place in order if aside[place] == (part == VALIDATION)]
        for part in (TRAIN, VALIDATION)
    }
    wanted = round(len(samples) * mix.validation)
    if (n := len(chosen[VALIDATION])) < ENOUGH * wanted:
        notes.append(
            f"the validation part has {n:,} samples, fewer than {wanted:,}: the others share calls "
            "with too many samples of the training part"
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    report = Report.of(chosen[TRAIN], chosen[VALIDATION], tallies, notes, settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # it says that the rest is whole
    for name, part in chosen.items():
        write_samples(part, folder / name)
    write_text(folder / REPORT_TEXT, report.to_markdown())
    write_text(folder / REPORT, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return report


# -- what there is to choose from ------------------------------------------------------------------


def _parts(mix: Mix, python: Tool, facts: FactDatabase | None) -> list[Part]:
    """The sources of a mix, in the order in which a prompt of two of them is kept."""
    parts = [_file_part(file) for file in mix.files]
    readers: dict[HubSource, Callable[[Iterable[Any]], Iterator[Sample | Refusal]]] = {
        "gsm8k": gsm8k_samples,
        "python": lambda rows: python_samples(rows, python),
        "instructions": instruction_samples,
    }
    for source, read in readers.items():
        n = getattr(mix, source)
        if n != 0:
            rows = _rows(source, getattr(mix, f"{source}_from"))
            parts.append(Part(source, n, len(rows), read(rows.shuffled(mix.seed))))
    n_kinds = len(mix.categories)
    for place, category in enumerate(mix.categories if mix.generated else ()):
        n = mix.generated * (place + 1) // n_kinds - mix.generated * place // n_kinds
        most = TRIES * n
        executor = python.executor if isinstance(python, Python) else None
        if category == "mixed":
            assert facts is not None
            drawn = ages(facts, most, mix.seed)
        else:
            drawn = generate(
                most, mix.seed, categories=(category,), level=mix.level, executor=executor
            )
        parts.append(Part(GENERATED + category, n, most, drawn))
    return parts


def _file_part(file: str) -> Part:
    samples = list(read_samples(file))
    return Part(str(file), None, len(samples), iter(samples))


def _rows(source: HubSource, place: str) -> Rows:
    if place == HUB:
        return hub_rows(source)
    return read_rows(FIXTURE if (source, place) == ("instructions", FIXTURE_NAME) else place)


# -- choosing --------------------------------------------------------------------------------------


def _collect(
    parts: Sequence[Part], tools: Iterable[Tool], on_progress: OnProgress | None
) -> tuple[list[Sample], list[RowCount]]:
    """The samples that are kept, and what became of the rows of each part."""
    tools = list(tools)
    samples: list[Sample] = []
    tallies: list[RowCount] = []
    prompts: set[str] = set()
    ids: set[str] = set()
    total, before = sum(_size(part) for part in parts), 0
    for part in parts:
        tally = RowCount(part.source, part.n, part.available)
        tallies.append(tally)
        kept_before = 0
        while part.n is None or tally.kept < part.n:
            if tally.tried and tally.tried % WINDOW == 0 and part.source.startswith(GENERATED):
                if tally.kept - kept_before < WINDOW * LEAST_NEW:
                    break  # nearly all that can be generated has been
                kept_before = tally.kept
            if (found := next(part.found, None)) is None:
                break
            tally.tried += 1
            if isinstance(found, Sample):
                found = _refused_as_double(found, part, prompts, ids) or (
                    verify(found, tools, _where(found, part)) or found
                )
            if isinstance(found, Refusal):
                tally.refuse(found)
            else:
                tally.kept += 1
                samples.append(found)
                prompts.add(plain_prompt(found.prompt))
                ids.add(found.id)
            if on_progress is not None and tally.tried % 100 == 0:
                done = tally.tried if part.n is None else tally.kept
                on_progress(before + done, total, part.source)
        before += _size(part)
        if on_progress is not None:
            on_progress(before, total, part.source)
    return samples, tallies


def _size(part: Part) -> int:
    return part.available if part.n is None else part.n


def _where(sample: Sample, part: Part) -> str:
    return f"{part.source}, sample {sample.id!r}"


def _refused_as_double(
    sample: Sample, part: Part, prompts: set[str], ids: set[str]
) -> Refusal | None:
    if plain_prompt(sample.prompt) in prompts:
        message = "there is a sample of the same prompt."
        return Refusal(_where(sample, part), "duplicate_prompt", message)
    if sample.id in ids:
        return Refusal(_where(sample, part), "duplicate_id", "there is a sample of the same id.")
    return None


def _shortage(tally: RowCount, mix: Mix) -> str | None:
    """What is to be told if a source gave too little; raises ConfigError where that is an error."""
    if tally.kept and tally.kept >= (tally.wanted or 0):
        return None
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in tally.refused.most_common())
    many = "no good row" if not tally.kept else f"{tally.kept:,} good rows"
    wanted = "" if tally.wanted is None else f", fewer than the {tally.wanted:,} wanted"
    refused = f" (refused: {reasons})" if reasons else ""
    note = f"{tally.source} has {many} among {tally.tried:,}{wanted}{refused}"
    is_generated = tally.source.startswith(GENERATED)
    if tally.kept and mix.allow_fewer and not is_generated:
        return note
    if is_generated:
        raise ConfigError(f"{note}; take fewer, or a higher level.")
    shown = next(iter(tally.examples.values()), ())
    first = f" The first of these: {shown[0].where}: {shown[0].message}" if shown else ""
    raise ConfigError(f"{note}.{first}")
