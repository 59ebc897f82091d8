"""A cell of the memory-load studies: one model, trained on one world, and its recall at the end."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import cpu_name
from benchmarks.statistics import clustered_wilson
from itl_env.database import FactDatabase
from itl_env.entropy import world_entropy
from itl_env.facts import ATTRIBUTES, Person, Vocabulary, people
from itl_env.files import whole_file
from itl_train.memory_config import MemoryConfig
from itl_train.rows import columns
from itl_train.sweep import Cell, Row, digest

if TYPE_CHECKING:
    from itl_train.memory import MemoryRun


@dataclass(frozen=True)
class World:
    """A database of facts for one cell."""

    n_people: int  # people that are trained on
    seed: int
    n_unseen: int = 0  # people that are not
    unseen_vocabulary: str = "paper"  # theirs; `ood` for first names that nobody else has
    correlation: float = 0.0  # share of values that a family shares
    first_names: int = 437  # names that are used, of each list
    last_names: int = 388

    @property
    def vocabulary(self) -> Vocabulary:
        """The paper's word lists, with as many names as are used."""
        paper = Vocabulary.load("paper")
        if (self.first_names, self.last_names) == (len(paper.first_names), len(paper.last_names)):
            return paper
        return paper.limit(self.first_names, self.last_names)

    def people(self) -> Iterable[Person]:
        """First those that are trained on, then the unseen ones."""
        words = self.vocabulary
        if self.unseen_vocabulary == "paper":
            return people(self.n_people + self.n_unseen, self.seed, words, self.correlation)
        return chain(
            people(self.n_people, self.seed, words, self.correlation),
            people(self.n_unseen, self.seed, self.unseen_vocabulary, self.correlation),
        )

    def build(self, folder: Path) -> Path:
        """The database's file in `folder`, made if it is not there."""
        name = "-".join(f"{value}" for value in vars(self).values())
        file = folder / f"{name}.db"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as partial:  # another job may be making the same
                FactDatabase.create(partial, self.people(), replace=True).close()
        return file.absolute()


def steps_for(exposures: float, n_people: int, batch_size: int) -> int:
    """Optimizer steps in which each fact of n people is seen `exposures` times on average."""
    return math.ceil(exposures * n_people * len(ATTRIBUTES) / batch_size)


PROTOCOL = 1
"""To be raised when runs of the same settings come to train or to be asked otherwise: rows of
before then no longer count as done."""

NO_MATTER = ("database", "device", "n_threads", "log_every", "checkpoint_every", "keep_checkpoints")
"""Settings of `MemoryConfig` that do not bear on what a row says."""


ADDED: Mapping[str, Any] = {"n_kv_heads": None}
"""Settings of `MemoryConfig` that older rows do not have, and what these were run with."""


def make_cell(name: str, world: World, model: Mapping[str, Any], **own: Any) -> Cell:
    """The cell of a world and the settings of `MemoryConfig` that are not the world's.

    own: what else the cell's work is told.

    Its name ends in a hash of everything that bears on its row, defaults included, so that a row is
    only ever taken for that of its settings. Raises ConfigError for settings that contradict.
    """
    settings = {"world": vars(world), "model": dict(model), **own}
    resolved = asdict(memory_config(settings, database=""))
    matter = {
        name: value
        for name, value in resolved.items()
        if name not in NO_MATTER and not (name in ADDED and value == ADDED[name])
    }
    return Cell(f"{name}-{digest([PROTOCOL, vars(world), matter, own])}", settings)


def seed_cells(name: str, worlds: Iterable[World], model: Mapping[str, Any]) -> list[Cell]:
    """The cells of one model on worlds that differ in their seed."""
    return [make_cell(f"{name}-seed-{world.seed}", world, model) for world in worlds]


def open_run(settings: Mapping[str, Any], folder: Path) -> "MemoryRun":
    """The training run of a cell, begun or to be continued."""
    from itl_train.memory import MemoryRun

    database = World(**settings["world"]).build(folder.parent / "worlds")
    return MemoryRun(memory_config(settings, str(database)), folder)


def memory_config(settings: Mapping[str, Any], database: str) -> MemoryConfig:
    """The settings of a cell's run."""
    world = World(**settings["world"])
    return MemoryConfig(
        database=database,
        n_people=world.n_people,
        n_unseen=world.n_unseen,
        seed=world.seed,
        **settings["model"],
    )


MOST_ASKED = 4_096
ASKED = (
    f"Recall is asked of all facts; where there are more than {MOST_ASKED:,}, of one fact of each "
    f"person, of at most {MOST_ASKED:,} people."
)


def train_cell(settings: Mapping[str, Any], folder: Path) -> Row:
    """Train the model of a cell and measure it at its last step.

    settings: of `make_cell`. For what is asked, see `ASKED`; intervals are Wilson's, clustered by
    person. `bits_per_parameter` counts the facts that an in-weight model knows.
    """
    from itl_agents.evaluate import facts_to_ask, measure_recall

    run = open_run(settings, folder)
    run.train()
    world, config = World(**settings["world"]), run.config
    n_facts = world.n_people * len(ATTRIBUTES)
    entropy = world_entropy(world.n_people, world.vocabulary, world.correlation, world.seed)
    row: Row = {
        "n_people": world.n_people,
        "correlation": world.correlation,
        "seed": world.seed,
        "parameters": run.model.config.n_parameters,
        "steps": run.step,
        "exposures": run.step * config.batch_size / n_facts,
        "bits_per_fact": entropy.bits_per_fact,
        "cpu": cpu_name(),
    }
    for who, task in (("seen", run.tasks.seen), ("unseen", run.tasks.unseen)):
        if task is None:
            continue
        count = measure_recall(run.agent(), task, facts_to_ask(task, MOST_ASKED))
        low, high = clustered_wilson(list(count.by_person.values()))
        row |= {
            f"{who}_asked": count.asked,
            f"{who}_right": count.right,
            f"{who}_recall": count.recall,
            f"{who}_low": low,
            f"{who}_high": high,
        }
    if config.mode == "in-weight":
        known = entropy.bits_per_fact * n_facts * row["seen_recall"]
        row["bits_per_parameter"] = known / row["parameters"]
    return row | columns(settings["model"])
