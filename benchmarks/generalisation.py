"""From how many people does a model learn to look up anybody?

    itl bench run generalisation --preset laptop --out runs/generalisation

Trains in-tool models of several widths on n people and asks them about people whose first names
appear nowhere in training (arXiv 2508.20755, section 5.2), at the last step.

Every model takes the same number of steps, so that what differs is how many people it saw and not
how long it learned. With `--match exposures` every model sees each fact equally often instead: then
few people also mean few steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from benchmarks.cells import ASKED, World, make_cell, steps_for
from benchmarks.reference import BATCH, GENERALISATION, STEPS
from benchmarks.statistics import interval
from benchmarks.studies import RecipeConfig, Study
from benchmarks.study_report import finish, table
from itl_env.dialogue import Style
from itl_train.sweep import Cell, Row

ENOUGH = 0.9  # recall on unseen names that counts as having learned to look up


class Sizes(NamedTuple):
    """How much a preset runs."""

    n_people: tuple[int, ...]
    widths: tuple[int, ...]
    n_seeds: int
    n_unseen: int
    n_steps: int
    exposures: int  # with `--match exposures`
    style: Style


# Widths 24, 36, 56 and 128 have the published 31K, 60K, 130K and 591K parameters.
PRESETS = {
    "smoke": Sizes((4, 8), (8,), 1, 20, 20, 20, "compact"),
    "laptop": Sizes((64, 256, 1_024, 4_096, 16_384), (24, 36, 56), 3, 1_000, 3_000, 40, "compact"),
    "paper": Sizes(
        (64, 256, 512, 1_024, 2_048, 32_768), (24, 36, 56, 128), 10, 4_000, 100_000, 1_000, "fenced"
    ),
}


@dataclass(frozen=True, kw_only=True)
class GeneralisationConfig(RecipeConfig):
    """Measure in-tool recall on unseen names against the number of people trained on.

    The same command goes on with an interrupted study.
    """

    match: Literal["steps", "exposures"] = "steps"  # what all models have in common

    @property
    def flags(self) -> str:
        """See `StudyConfig.flags`."""
        return f"{super().flags} --match {self.match}"


def generalisation(
    config: GeneralisationConfig, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run what is left; writes `report.md`, `runs.csv`, `study.json` and `generalisation.png`."""
    from benchmarks.study_plots import generalisation_figure

    sizes = PRESETS[config.preset]
    study: Study[None] = Study("generalisation", config)

    # All train to the end: those who see few people must not stop sooner.
    common = config.settings(mode="in-tool", style=sizes.style, stop_at=0.0)

    def cell(n: int, width: int, seed: int) -> Cell:
        batch_size = common["batch_size"]
        by_exposures = steps_for(sizes.exposures, n, batch_size)
        n_steps = sizes.n_steps if config.match == "steps" else by_exposures
        model = {**common, "d_model": width, "n_steps": n_steps}
        world = World(n, seed, n_unseen=sizes.n_unseen, unseen_vocabulary="ood")
        return make_cell(f"{n}-people-d-{width}-{config.match}-seed-{seed}", world, model)

    rows = study.run(
        [
            cell(n, width, seed)
            for width in reversed(sizes.widths)  # the longest first
            for n in sizes.n_people
            for seed in range(sizes.n_seeds)
        ]
    )
    cells = [
        summary([r for r in rows if (r["n_people"], r["d_model"]) == (n, width)])
        for width in sizes.widths
        for n in sizes.n_people
    ]
    result = {
        "sizes": sizes._asdict(),
        "match": config.match,
        "batch_size": common["batch_size"],
        "cells": cells,
    }
    generalisation_figure(rows, config.out / "generalisation.png")
    return finish(study, result, report(result), say, model=common)


def summary(rows: list[Row]) -> dict[str, Any]:
    """The mean over seeds, with the lowest and the highest, of one width and number of people."""
    out: dict[str, Any] = {
        name: rows[0][name] for name in ("n_people", "d_model", "parameters", "steps", "exposures")
    }
    for who in ("seen", "unseen"):
        recalls = [row[f"{who}_recall"] for row in rows]
        out[f"{who}_recall"] = math.fsum(recalls) / len(recalls)
        out[f"{who}_lowest"], out[f"{who}_highest"] = min(recalls), max(recalls)
    out["published"] = published(out["parameters"], out["n_people"])
    return out


def published(parameters: int, n_people: int) -> float | None:
    """The published recall at a size that rounds to the same number of thousands, if any."""
    by_people = GENERALISATION.get(f"{parameters / 1000:.0f}K")
    return None if by_people is None else by_people.get(n_people)


def report(result: Mapping[str, Any]) -> str:
    """`report.md`: the figure, the table, and how it compares with the published one."""
    sizes, cells = result["sizes"], result["cells"]
    rows = [
        (
            f"{c['parameters']:,}",
            f"{c['n_people']:,}",
            f"{c['steps']:,}",
            f"{c['exposures']:,.1f}",
            interval(c["seen_recall"], c["seen_lowest"], c["seen_highest"]),
            interval(c["unseen_recall"], c["unseen_lowest"], c["unseen_highest"]),
            "-" if c["published"] is None else f"{100 * c['published']:.0f}%",
        )
        for c in cells
    ]
    head = (
        "P", "people", "steps", "exposures", "recall, trained on", "recall, unseen names",
        "published, unseen",
    )  # fmt: skip
    matched = (
        "Every model took the same number of steps, as in the published study: with equal "
        "exposures (`--match exposures`), models of few people would also learn for few steps."
        if result["match"] == "steps"
        else "Every model saw each fact equally often, so those of few people took few steps."
    )
    return f"""# From how many people does a model learn to look up anybody?

![recall on unseen names against people trained on](generalisation.png)

{table(head, rows, left=0)}

Recall is the mean over {sizes["n_seeds"]} seeds with the lowest and the highest, at the last step.
Unseen are {sizes["n_unseen"]:,} people with first names that nobody trained on has. {ASKED} Each
run's own Wilson interval is in `runs.csv`; where all answers are right, or none, it counts people
instead of questions. {matched} Calls are in style `{sizes["style"]}`; the
published figures are for `fenced`, one seed and 40 questions, after {STEPS:,} steps of {BATCH}
dialogues; here a step has {result["batch_size"]}.

{agreement(cells)}
"""


def agreement(cells: list[dict[str, Any]]) -> str:
    """In words: which sizes generalise here, and which did in the published table."""
    lines = []
    for parameters in dict.fromkeys(cell["parameters"] for cell in cells):
        own = [cell for cell in cells if cell["parameters"] == parameters]
        ours = _first(own, "unseen_recall")
        line = f"- P = {parameters:,}: {ours} here"
        if by_people := GENERALISATION.get(f"{parameters / 1000:.0f}K"):
            there = _first([{"n_people": n, "recall": r} for n, r in by_people.items()], "recall")
            line += f", {there} in the published table"
            both = [
                (c["unseen_recall"], by_people[n]) for c in own if (n := c["n_people"]) in by_people
            ]
            agreeing = sum((here >= ENOUGH) == (there >= ENOUGH) for here, there in both)
            line += f"; of {len(both)} numbers of people in both, they agree at {agreeing}"
        lines.append(line + ".")
    return f"Recall on unseen names of at least {ENOUGH}:\n\n" + "\n".join(lines)


def _first(cells: list[dict[str, Any]], key: str) -> str:
    """From how many people on the recall is enough, and stays so."""
    first = None
    for cell in sorted(cells, key=lambda cell: -cell["n_people"]):
        if cell[key] < ENOUGH:
            break
        first = cell["n_people"]
    return "at no number of people" if first is None else f"from {first:,} people on"
