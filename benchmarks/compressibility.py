"""Does a model need fewer parameters where facts follow from one another?

    itl bench run compressibility --preset laptop --out runs/compressibility

In worlds whose families share values with growing probability, bisects for the narrowest in-weight
model whose recall on the people it was trained on, averaged over seeds, reaches 0.95 (arXiv
2508.20755, section 5.3). Only the correlation changes: word lists and numbers of people stay.

Widths are coarse (a size is 1.3 to 1.8 times the one before), so what correlation saves may lie
between two of them. Recall at a fixed size shows it then: that of the widest model which is too
small for the least correlated world, measured in all of them with seeds that had no part in
choosing it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from benchmarks.cells import ASKED, World, seed_cells, steps_for
from benchmarks.reference import AT_MOST, COMPRESSIBILITY, RECALL
from benchmarks.studies import WIDTHS, RecipeConfig, Study
from benchmarks.study_report import RULED_OUT, finish, minimum, number, recall_spread, table
from itl_env.entropy import world_entropy
from itl_env.facts import ATTRIBUTES
from itl_train.sweep import Cell, Row


class Sizes(NamedTuple):
    """How much a preset runs."""

    n_people: tuple[int, ...]
    first_names: int
    last_names: int  # each is a family
    correlations: tuple[float, ...]
    widths: tuple[int, ...]
    n_seeds: int
    n_fixed: int  # further seeds, at the fixed size
    exposures: int  # times that each fact is seen


CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PRESETS = {
    "smoke": Sizes((3,), 4, 4, (0.0, 1.0), (4, 24), 1, 1, 75),
    "laptop": Sizes((128,), 32, 16, CORRELATIONS, (8, 12, 16, 20, 24, 32, 48), 3, 5, 400),
    "paper": Sizes((1_000, 8_192), 128, 64, CORRELATIONS, WIDTHS, 10, 10, 400),
}


@dataclass(frozen=True, kw_only=True)
class CompressibilityConfig(RecipeConfig):
    """Find the smallest in-weight model for worlds whose families share values.

    The same command goes on with an interrupted study.
    """


class Group(NamedTuple):
    """One search for a width."""

    n_people: int
    correlation: float


def compressibility(
    config: CompressibilityConfig, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run what is left; writes `report.md`, `runs.csv`, `study.json` and `compressibility.png`."""
    from benchmarks.study_plots import compressibility_figure

    sizes = PRESETS[config.preset]
    study: Study[Group] = Study("compressibility", config)

    def world(group: Group, seed: int) -> World:
        return World(
            group.n_people,
            seed,
            correlation=group.correlation,
            first_names=sizes.first_names,
            last_names=sizes.last_names,
        )

    def cells(group: Group, width: int, seeds: Iterable[int]) -> list[Cell]:
        batch_size = config.settings()["batch_size"]
        n_steps = steps_for(sizes.exposures, group.n_people, batch_size)
        model = config.settings(mode="in-weight", d_model=width, n_steps=n_steps)
        name = f"{group.n_people}-people-correlation-{group.correlation:g}-d-{width}"
        return seed_cells(name, (world(group, seed) for seed in seeds), model)

    groups = [Group(n, c) for n in reversed(sizes.n_people) for c in sizes.correlations]
    seeds, more = range(sizes.n_seeds), range(sizes.n_seeds, sizes.n_seeds + sizes.n_fixed)
    widths = study.search(dict.fromkeys(groups, sizes.widths), partial(cells, seeds=seeds))
    searched = list(study.rows.values())
    least = min(sizes.correlations)
    fixed = {n: narrower(sizes.widths, widths[Group(n, least)]) for n in sizes.n_people}
    at_fixed = study.run(
        [
            c
            for g in groups
            if (width := fixed[g.n_people]) is not None
            for c in cells(g, width, more)
        ]
    )
    found = []
    for group in sorted(groups):
        bits = [_bits(world(group, seed)) for seed in seeds]
        found.append(
            {
                **minimum(searched, group._asdict(), widths[group]),
                "fixed": recall_at_fixed_size(at_fixed, group),
                "bits": sum(bits) / len(bits),
                "published": COMPRESSIBILITY.get(group.n_people, {}).get(group.correlation),
            }
        )
    result = {"sizes": sizes._asdict(), "minima": found}
    compressibility_figure(found, config.out / "compressibility.png")
    return finish(study, result, report(result), say, model=config.settings(mode="in-weight"))


def recall_at_fixed_size(rows: Sequence[Row], group: Group) -> dict[str, Any] | None:
    """What the group's runs at the fixed size recall, if there is such a size."""
    own = [row for row in rows if (row["n_people"], row["correlation"]) == group]
    if not own:
        return None
    recalls = [row["seen_recall"] for row in own]
    return {
        "parameters": own[0]["parameters"],
        "recall": sum(recalls) / len(recalls),
        "recall_lowest": min(recalls),
        "recall_highest": max(recalls),
    }


def narrower(widths: Sequence[int], width: int | None) -> int | None:
    """The widest of the widths that is narrower, if any is; the widest of all than None."""
    return max((w for w in widths if width is None or w < width), default=None)


def _bits(world: World) -> float:
    """The entropy of all values of a world."""
    return world_entropy(world.n_people, world.vocabulary, world.correlation, world.seed).total_bits


def report(result: Mapping[str, Any]) -> str:
    """`report.md`: the figure, the table, and how it compares with the published one."""
    sizes = result["sizes"]
    rows = [
        (
            f"{row['n_people']:,}",
            f"{row['correlation']:g}",
            f"{row['bits'] / row['n_people'] / len(ATTRIBUTES):.2f}",
            number(row["parameters"], f"none up to d {sizes['widths'][-1]}"),
            number(row["failed"]),
            recall_spread(row),
            f"{row['exposures']:,.0f}",
            "-" if row["fixed"] is None else number(row["fixed"]["parameters"]),
            "-" if row["fixed"] is None else recall_spread(row["fixed"]),
            number(row["published"]),
        )
        for row in result["minima"]
    ]
    head = (
        "people", "correlation", "bits/fact", "smallest P", "largest P that fails",
        "recall, mean [lowest, highest seed]", "exposures", "fixed P", "recall at fixed P",
        "published P",
    )  # fmt: skip
    return f"""# Does a model need fewer parameters where facts follow from one another?

![smallest model against correlation](compressibility.png)

{table(head, rows, left=0)}

In-weight; {sizes["first_names"]} first names and {sizes["last_names"]} families. Smallest P: the
narrowest of {len(sizes["widths"])} widths ({sizes["widths"][0]} to {sizes["widths"][-1]}) whose
recall on the people trained on, averaged over {sizes["n_seeds"]} seeds, is at least {RECALL} at the
last step; found by bisection. {RULED_OUT} Fixed P: that of the widest model which is too small at
the lowest correlation, in all worlds with {sizes["n_fixed"]} seeds that had no part in choosing it;
it was added to the study when widths had proved too coarse to tell the worlds apart. {ASKED}

With the published figures, word lists shrank as correlation grew; here they do not. With so few
names a person is told by fewer letters than in `bounds`, so sizes are not to be compared with those
there.

{agreement(result["minima"])}
"""


def _verdict(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Whether less is needed at full correlation than without, as was published."""
    if last["parameters"] != first["parameters"]:
        less = last["parameters"] < first["parameters"]
        return (
            "in that less is needed, the published study and this one "
            f"{'agree' if less else 'disagree'}."
        )
    without, full = first["fixed"], last["fixed"]
    if without is None or full is None:
        return "these widths cannot tell whether less is needed."
    if full["recall_lowest"] > without["recall_highest"]:
        result = "every seed knows more: the published study and this one agree in direction."
    elif full["recall_highest"] < without["recall_lowest"]:
        result = "every seed knows less: the published study and this one disagree."
    else:
        result = "seeds overlap: these widths cannot tell."
    return (
        f"with P fixed at {without['parameters']:,}, recall goes from {recall_spread(without)} to "
        f"{recall_spread(full)}, so {result}"
    )


def agreement(minima: list[dict[str, Any]]) -> str:
    """In words: how much correlation saves, here and in the published table."""
    lines = []
    for n in dict.fromkeys(row["n_people"] for row in minima):
        own = [row for row in minima if row["n_people"] == n]
        first, last = own[0], own[-1]
        if first["parameters"] and last["parameters"]:
            lines.append(
                f"- {n:,} people, here: full correlation takes the entropy to "
                f"{last['bits'] / first['bits']:.2f} and the smallest P to "
                f"{last['parameters'] / first['parameters']:.2f} of what they are without; "
                + _verdict(first, last)
            )
    for n, published in COMPRESSIBILITY.items():
        share = published[1.0] / published[0.0]
        bound = "at most " if (n, 1.0) in AT_MOST else ""
        lines.append(f"- {n:,} people, published: the smallest P goes to {bound}{share:.2f}.")
    return "\n".join(lines)
