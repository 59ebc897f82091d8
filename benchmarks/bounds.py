"""How many parameters does it take to know facts, and how many to look them up?

    itl bench run bounds --preset laptop --out runs/bounds

For each number of people, in-weight and in-tool, bisects for the narrowest model whose recall on
the people it was trained on, averaged over seeds, reaches 0.95 (arXiv 2508.20755, section 5.1).
Every model sees each fact equally often at most; the fast recipe ends a run once it knows them.
Worlds so small that this would be few steps get `fewest_steps`, for a schedule needs some to learn
anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.cells import ASKED, World, seed_cells, steps_for
from benchmarks.circuit import size_of
from benchmarks.reference import (
    BATCH,
    BOUNDS_IN_TOOL,
    BOUNDS_IN_WEIGHT,
    LINE,
    LINE_OF_MEANS,
    RECALL,
    STEPS,
)
from benchmarks.studies import SHAPE, WIDTHS, RecipeConfig, Study
from benchmarks.study_report import (
    RULED_OUT,
    finish,
    line_fit,
    minimum,
    number,
    recall_spread,
    table,
)
from itl_env.facts import ATTRIBUTES
from itl_env.recall import Mode
from itl_train.sweep import Cell

MODES: tuple[Mode, ...] = ("in-weight", "in-tool")
PUBLISHED: Mapping[Mode, Mapping[int, int | None]] = {
    "in-weight": BOUNDS_IN_WEIGHT,
    "in-tool": BOUNDS_IN_TOOL,
}


class Sizes(NamedTuple):
    """How much a preset runs."""

    in_weight: tuple[int, ...]  # numbers of people
    in_tool: tuple[int, ...]
    widths: tuple[int, ...]
    n_seeds: int
    exposures: int  # times that each fact is seen, unless the model knows it earlier
    fewest_steps: int


EVERY = tuple(2**i for i in range(1, 16))
PRESETS = {
    "smoke": Sizes((2, 3), (2,), (12, 24), 1, 150, 1),
    "laptop": Sizes((32, 64, 128, 256), (32, 64, 128), (8, 12, 16, 20, 24, 32, 48), 3, 400, 1_000),
    "paper": Sizes(EVERY, EVERY, WIDTHS, 10, 400, 1_000),
}


@dataclass(frozen=True, kw_only=True)
class BoundsConfig(RecipeConfig):
    """Find the smallest model that knows n people, and the smallest that looks them up.

    The same command goes on with an interrupted study.
    """


class Group(NamedTuple):
    """One search for a width."""

    mode: Mode
    n_people: int


def bounds(config: BoundsConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run what is left of the study; writes `report.md`, `runs.csv`, `study.json`, two figures."""
    from benchmarks.study_plots import bounds_figure, recall_figure

    sizes = PRESETS[config.preset]
    study: Study[Group] = Study("bounds", config)

    def cells(group: Group, width: int) -> list[Cell]:
        mode, n = group
        n_steps = steps_for(sizes.exposures, n, config.settings()["batch_size"])
        model = config.settings(mode=mode, d_model=width, n_steps=max(sizes.fewest_steps, n_steps))
        name = f"{mode}-{n}-people-d-{width}"
        return seed_cells(name, (World(n, seed) for seed in range(sizes.n_seeds)), model)

    groups = [Group("in-tool", n) for n in reversed(sizes.in_tool)]  # the longest runs first
    groups += [Group("in-weight", n) for n in reversed(sizes.in_weight)]
    widths = study.search(dict.fromkeys(groups, sizes.widths), cells)
    found = [
        {
            **minimum(study.rows.values(), group._asdict(), widths[group]),
            "facts": len(ATTRIBUTES) * group.n_people,
            "published": PUBLISHED[group.mode].get(group.n_people),
        }
        for group in reversed(groups)
    ]
    fit = line_fit(
        [(row["facts"], row["parameters"]) for row in found if row["mode"] == "in-weight"]
    )
    built = size_of(ATTRIBUTES, SHAPE["style"])
    result = {"sizes": sizes._asdict(), "minima": found, "line": fit, "circuit": built}
    bounds_figure(found, fit, built, config.out / "bounds.png")
    recall_figure(list(study.rows.values()), config.out / "recall.png")
    return finish(study, result, report(result), say, model=config.settings())


def report(result: Mapping[str, Any]) -> str:
    """`report.md`: the figures, the table, and how it compares with the published one."""
    sizes, fit = result["sizes"], result["line"]
    rows = [
        (
            row["mode"],
            f"{row['n_people']:,}",
            f"{row['facts']:,}",
            number(row["parameters"], f"none up to d {sizes['widths'][-1]}"),
            number(row["failed"]),
            recall_spread(row),
            f"{row['exposures']:,.0f}",
            "-" if row["bits_per_parameter"] is None else f"{row['bits_per_parameter']:.2f}",
            number(row["published"]),
            ratio(row),
        )
        for row in result["minima"]
    ]
    head = (
        "mode", "people", "facts", "smallest P", "largest P that fails",
        "recall, mean [lowest, highest seed]", "exposures", "bits/parameter", "published P",
        "P / published",
    )  # fmt: skip
    slope = lines(fit, result["minima"])
    most = max(row["exposures"] for row in result["minima"])
    return f"""# How many parameters do facts need?

![smallest model against facts](bounds.png)

{table(head, rows, left=1)}

Smallest P: the narrowest of {len(sizes["widths"])} widths ({sizes["widths"][0]} to
{sizes["widths"][-1]}) whose recall on the people that it was trained on, averaged over
{sizes["n_seeds"]} seeds, is at least {RECALL}; found by bisection. {RULED_OUT} Seeds drive world,
initialisation and data order; recall is that of the last step.
{ASKED}

{slope}

A transformer built by hand (`itl bench run circuit`) answers through the tool about any number of
people with {result["circuit"]["parameters"]:,} parameters, of which
{result["circuit"]["nonzero"]:,} are not zero: the flat lines of the figure.

{agreement(result["minima"])}
- The published runs all took {STEPS:,} steps of {BATCH} dialogues: {STEPS * BATCH // 256:,}
  exposures of each fact of 64 people, {STEPS * BATCH // 4_096:,} of each of 1,024 people. Here a
  fact is seen at most {most:,.0f} times, so where there are few people a smaller published size is
  no contradiction; `itl bench run capacity` trains for longer.

![recall against parameters](recall.png)

Points are means over seeds, with the lowest and the highest; hollow ones are of the first seed
alone.
"""


def lines(fit: Mapping[str, float] | None, minima: Sequence[Mapping[str, Any]]) -> str:
    """In words: the line through our in-weight sizes, and those through the published ones."""
    if fit is None:
        return "There are too few in-weight sizes for a line."
    said = (
        f"The line through the in-weight sizes is P = {fit['slope']:.2f} facts + "
        f"{fit['intercept']:,.0f} (R^2 {fit['r2']:.3f}). "
    )
    facts = [m["facts"] for m in minima if m["mode"] == "in-weight" and m["parameters"]]
    there = [(len(ATTRIBUTES) * n, p) for n, p in BOUNDS_IN_WEIGHT.items()]
    shared = [(x, p) for x, p in there if min(facts) <= x <= max(facts)]
    if near := line_fit(shared):
        said += (
            f"Through the published sizes of {shared[0][0]:,} to {shared[-1][0]:,} facts it is "
            f"{near['slope']:.2f} facts + {near['intercept']:,.0f}. "
        )
    return said + (
        f"Through the published ones of 8 to 32,768 facts, fitted alike, it is {LINE_OF_MEANS[0]} "
        f"facts + {LINE_OF_MEANS[1]:,}; the published line, through the sizes of each seed, is "
        f"{LINE[0]} facts + {LINE[1]:,}."
    )


def ratio(row: Mapping[str, Any]) -> str:
    """Our smallest P over the published one."""
    if not row["parameters"] or not row["published"]:
        return "-"
    return f"{row['parameters'] / row['published']:.2f}"


def agreement(minima: Sequence[Mapping[str, Any]]) -> str:
    """In words: where our sizes agree with the published ones, and where they do not."""
    lines = []
    for mode in MODES:
        both = [m for m in minima if m["mode"] == mode and m["parameters"] and m["published"]]
        ours = [m for m in minima if m["mode"] == mode and m["parameters"]]
        if both:
            smaller = sum(m["parameters"] < m["published"] for m in both)
            equal = sum(m["parameters"] == m["published"] for m in both)
            lines.append(
                f"- {mode}: of {len(both)} sizes that were published too, ours is smaller at "
                f"{smaller}, equal at {equal}, larger at {len(both) - smaller - equal}."
            )
        if len(ours) >= 2:
            grown = ours[-1]["parameters"] / ours[0]["parameters"]
            facts = ours[-1]["facts"] / ours[0]["facts"]
            lines.append(
                f"- {mode}: from {ours[0]['facts']:,} to {ours[-1]['facts']:,} facts "
                f"(x{facts:.3g}) the smallest P grows x{grown:.1f}."
            )
    return "\n".join(lines) or "No size reached the recall, so nothing can be compared."
