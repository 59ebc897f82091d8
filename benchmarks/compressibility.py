"""Does a model need fewer parameters where facts follow from one another?

    itl bench run compressibility --preset laptop --out runs/compressibility

In worlds whose families share values with growing probability, bisects for the narrowest in-weight
model whose recall on the people it was trained on, averaged over seeds, reaches 0.95 (arXiv
2508.20755, section 5.3). Only the correlation changes: word lists and numbers of people stay.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.cells import ASKED, World, seed_cells, steps_for
from benchmarks.reference import AT_MOST, COMPRESSIBILITY, RECALL
from benchmarks.studies import WIDTHS, RecipeConfig, Study
from benchmarks.study_report import RULED_OUT, finish, minimum, number, recall_spread, table
from itl_env.entropy import world_entropy
from itl_train.sweep import Cell


class Sizes(NamedTuple):
    """How much a preset runs."""

    n_people: tuple[int, ...]
    first_names: int
    last_names: int  # each is a family
    correlations: tuple[float, ...]
    widths: tuple[int, ...]
    n_seeds: int
    exposures: int  # times that each fact is seen


CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PRESETS = {
    "smoke": Sizes((4,), 4, 4, (0.0, 1.0), (12, 24), 1, 600),
    "laptop": Sizes((128,), 32, 16, CORRELATIONS, (8, 12, 16, 20, 24, 32, 48), 3, 400),
    "paper": Sizes((1_000, 8_192), 128, 64, CORRELATIONS, WIDTHS, 10, 400),
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

    def cells(group: Group, width: int) -> list[Cell]:
        batch_size = config.settings()["batch_size"]
        n_steps = steps_for(sizes.exposures, group.n_people, batch_size)
        model = config.settings(mode="in-weight", d_model=width, n_steps=n_steps)
        name = f"{group.n_people}-people-correlation-{group.correlation:g}-d-{width}"
        return seed_cells(name, (world(group, seed) for seed in range(sizes.n_seeds)), model)

    groups = [Group(n, c) for n in reversed(sizes.n_people) for c in sizes.correlations]
    widths = study.search(groups, sizes.widths, cells)
    found = []
    for group in sorted(groups):
        bits = [_bits(world(group, seed)) for seed in range(sizes.n_seeds)]
        found.append(
            {
                **minimum(study.rows.values(), group._asdict(), widths[group]),
                "bits": sum(bits) / len(bits),
                "published": COMPRESSIBILITY.get(group.n_people, {}).get(group.correlation),
            }
        )
    result = {"sizes": sizes._asdict(), "minima": found}
    compressibility_figure(found, config.out / "compressibility.png")
    return finish(study, result, report(result), say, model=config.settings(mode="in-weight"))


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
            f"{row['bits'] / row['n_people'] / 4:.2f}",
            number(row["parameters"], f"none up to d {sizes['widths'][-1]}"),
            number(row["failed"]),
            "-" if row["failed_recall"] is None else f"{100 * row['failed_recall']:.0f}%",
            recall_spread(row),
            f"{row['exposures']:,.0f}",
            number(row["published"]),
        )
        for row in result["minima"]
    ]
    head = (
        "people", "correlation", "bits/fact", "smallest P", "largest P that fails",
        "its recall", "recall, mean [lowest, highest seed]", "exposures", "published P",
    )  # fmt: skip
    return f"""# Does a model need fewer parameters where facts follow from one another?

![smallest model against correlation](compressibility.png)

{table(head, rows, left=0)}

In-weight; {sizes["first_names"]} first names and {sizes["last_names"]} families. Smallest P: the
narrowest of {len(sizes["widths"])} widths ({sizes["widths"][0]} to {sizes["widths"][-1]}) whose
recall on the people trained on, averaged over {sizes["n_seeds"]} seeds, is at least {RECALL} at the
last step; found by bisection, so the truth lies above the largest P that fails. {RULED_OUT}
{ASKED} With the
published figures, word lists shrank as correlation grew; here they do not.

{agreement(result["minima"])}
"""


def _verdict(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Whether less is needed at full correlation than without, as was published."""
    if last["parameters"] != first["parameters"]:
        less = last["parameters"] < first["parameters"]
        both = "agree." if less else "disagree."
        return f"in that less is needed, the published study and this one {both}"
    if first["failed"] != last["failed"] or first["failed_recall"] is None:
        return "these widths cannot tell whether less is needed."
    return (
        "these widths cannot tell whether less is needed; the largest P that fails recalls "
        f"{100 * first['failed_recall']:.0f}% without it and {100 * last['failed_recall']:.0f}% "
        "with it."
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
