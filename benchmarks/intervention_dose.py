"""Experiment 2B: what does more or less of the delta do? base + alpha * delta, at each layer.

itl bench run intervention-dose --preset laptop --model MODEL --text FILE --out DIR
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.interventions import (
    DOSES,
    Condition,
    Row,
    cell_name,
    differences,
    paired_table,
    tables,
)
from benchmarks.progress import Progress
from benchmarks.statistics import holm
from benchmarks.toolformer_cells import Cells, publish_study, write_lines
from benchmarks.toolformer_study import InterventionConfig, Toolformer, begin
from itl_agents.sites import fingerprint
from itl_agents.transcoder import check_model, dosed, site_for
from itl_env.errors import ConfigError
from itl_env.toolformer import KINDS

COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "layer": lambda row: str(row["layer"]),
    "alpha": lambda row: f"{row['alpha']:g}",
}


@dataclass(frozen=True, kw_only=True)
class InterventionDoseConfig(InterventionConfig):
    """Replace one MLP at a time by base + alpha * delta; see what is written."""

    out: Path = Path("runs/intervention-dose")  # folder of the table, figures and report
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # factors of the delta

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alphas:
            raise ConfigError("alphas names nothing; give one value or more.")
        if not all(map(math.isfinite, self.alphas)):
            raise ConfigError("alphas must be finite numbers.")


def intervention_dose(config: InterventionDoseConfig, tell: Callable[[str], None] = print) -> None:
    """Run what is left of the study; write rows, figures and the report, and print the report."""
    from benchmarks.intervention_plots import dose_figure

    made = begin(config, config.out, "intervention-dose")
    rows, paired = _measured(made, config)
    results = {
        **made.course("intervention-dose"),
        "percentile": config.percentile,
        "d_new": config.n_new,
        "rows": rows,
        "differences": paired,
    }
    publish_study(config.out, results, report, tell)
    dose_figure(rows, config.out / "dose.png")


def _measured(made: Toolformer, config: InterventionDoseConfig) -> tuple[list[Row], list[Row]]:
    """A row for each layer, alpha and subset; and how each differs from alpha 0, if that is one."""
    for layer in made.layers:
        made.delta(layer, config.percentile, config.n_new)
    subject = made.subject(made.sizes.n_evaluate)
    model_hash = fingerprint(subject.model)
    total = len(KINDS) * len(made.layers) * len(config.alphas)
    cells = Cells(made.place("cells"), total)
    rows: list[Row] = []
    each: dict[tuple[int, float, str], list[Row]] = {}
    with Progress("cells", total) as progress:
        for layer in made.layers:
            base = made.base(layer, config.percentile)
            delta = made.delta(layer, config.percentile, config.n_new)
            check_model(delta, subject.model)
            site = site_for(base, subject.model, layer)
            for alpha in config.alphas:
                instead, features = dosed(base, delta, alpha), delta if alpha else None
                condition = Condition(f"alpha {alpha:g}", site, instead, base, features)
                dose = DOSES.get(alpha, condition.name)
                for kind in KINDS:
                    name = cell_name(layer, config.percentile, config.n_new, dose, kind)
                    made_by = {
                        "model": model_hash, "rows": subject.digest(kind), "base": base.hash,
                        "delta": delta.hash,
                    }  # fmt: skip
                    measure = partial(subject.measured, condition, kind)
                    found, written = cells.measured(name, made_by, measure, progress)
                    write_lines(written, config.out / "generations" / f"{name}.jsonl")
                    rows.append({"layer": layer, "alpha": alpha, **found})
                    each[layer, alpha, kind] = written
    paired = [
        {
            "layer": layer,
            "alpha": alpha,
            "subset": kind,
            **differences(written, each[layer, 0.0, kind]),
        }
        for (layer, alpha, kind), written in each.items()
        if alpha and 0.0 in config.alphas
    ]
    return rows, paired


def findings(paired: Sequence[Row]) -> str:
    """A line for each layer: at which doses are there more calls than at none?"""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in paired):
        own = [row for row in paired if (row["layer"], row["subset"]) == (layer, "tool_ood")]
        said = "; ".join(
            f"{row['tool_call']:+.1%} at {row['alpha']:g}{' (told from 0)' if p < 0.05 else ''}"
            for row, p in zip(own, holm([row["tool_call_p"] for row in own]), strict=True)
        )
        lines.append(f"- layer {layer}: {said}")
    return "\n".join(lines)


def report(results: Mapping[str, Any]) -> str:
    """The study in words and tables, as Markdown."""
    rows, on = results["rows"], results["machine"]
    paired = ""
    if results["differences"]:
        paired = f"""
## What a dose has more than none

Than alpha 0, over the same rows, with 95% intervals of paired differences (Newcombe's of shares),
and how many rows only it and only alpha 0 has. After questions in unseen phrasings (`tool_ood`), by
McNemar's exact test at 5%, corrected by Holm for the doses of a layer, the share
that begins with a call differs

{findings(results["differences"])}

{paired_table(results["differences"], ("layer", "alpha", "subset"))}
"""
    return f"""# The dose of a delta

{results["model"]}, fine-tuned to call a calculator as text; the MLP of one layer is replaced by
base + alpha * delta. Deltas have {results["d_new"]} features, beside the base of percentile
{results["percentile"]:g}. Machine: {on["cpu"]}, {on["cores"]} cores. Preset {results["preset"]},
seed {results["seed"]}. Columns as in `intervention-layers`.

    {results["command"]}

![shares against alpha](dose.png)

{tables(rows, COLUMNS)}
{paired}"""
