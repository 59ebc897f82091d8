"""What the memory-load studies share: their worlds, what one cell does, the search for a size.

A cell trains one model on one world and measures its recall at the last checkpoint. How long it
trains follows from `exposures`, the times each fact is seen, so that worlds of different size are
trained alike.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.reference import RECALL
from benchmarks.statistics import clustered_wilson
from itl_env.database import FactDatabase
from itl_env.entropy import world_entropy
from itl_env.facts import ATTRIBUTES, Person, Vocabulary, people
from itl_train.sweep import Row

# The published grid of widths; at 2 layers, 2 heads and the byte vocabulary P = 32 d^2 + 525 d.
WIDTHS = (*range(4, 81, 4), *range(88, 129, 8))


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
            FactDatabase.create(file, self.people()).close()
        return file.absolute()


def steps_for(exposures: float, n_people: int, batch_size: int) -> int:
    """Optimizer steps in which each fact of n people is seen `exposures` times on average."""
    return math.ceil(exposures * n_people * len(ATTRIBUTES) / batch_size)


def train_cell(settings: Mapping[str, Any], folder: Path) -> Row:
    """Train the model of a cell and measure it; see `cell_settings`."""
    from itl_agents.evaluate import measure_recall, one_question_each
    from itl_train.memory import MemoryRun
    from itl_train.memory_config import MemoryConfig

    world = World(**settings["world"])
    config = MemoryConfig(
        database=str(world.build(folder.parent / "worlds")),
        n_people=world.n_people,
        n_unseen=world.n_unseen,
        seed=world.seed,
        **settings["model"],
    )
    run = MemoryRun(config, folder)
    run.train()
    row: Row = {
        **settings["labels"],
        "n_people": world.n_people,
        "seed": world.seed,
        "parameters": run.model.config.n_parameters,
        "steps": run.step,
        "exposures": run.step * config.batch_size / (world.n_people * len(ATTRIBUTES)),
    }
    entropy = world_entropy(world.n_people, world.vocabulary, world.correlation, world.seed)
    n_facts = world.n_people * len(ATTRIBUTES)
    row["bits_per_fact"] = entropy.bits_per_fact
    row["bits_per_parameter"] = entropy.bits_per_fact * n_facts / row["parameters"]
    for who, task in (("seen", run.tasks.seen), ("unseen", run.tasks.unseen)):
        if task is None:
            continue
        every = task.n_facts <= 4_000
        facts = task.facts() if every else one_question_each(task, 4_000)
        count = measure_recall(run.agent(), task, facts)
        low, high = clustered_wilson(list(count.by_person.values()))
        row |= {
            f"{who}_asked": count.asked,
            f"{who}_right": count.right,
            f"{who}_recall": count.recall,
            f"{who}_low": low,
            f"{who}_high": high,
        }
    return row


def smallest(
    widths: Sequence[int], recalls: Callable[[int], float | None], target: float = RECALL
) -> tuple[int | None, int | None]:
    """Bisect for the smallest width whose recall reaches the target.

    recalls: the mean recall at a width, None where it is not known yet.

    Returns (that width or None if none reaches it, the width to measure next or None if done). It
    is taken for granted that a wider model recalls no less.
    """
    low, high = 0, len(widths)  # the answer's place; len(widths) for none
    while low < high:
        middle = (low + high) // 2
        recall = recalls(widths[middle])
        if recall is None:
            return None, widths[middle]
        if recall >= target:
            high = middle
        else:
            low = middle + 1
    return (widths[low] if low < len(widths) else None), None
