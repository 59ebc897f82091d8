"""Experiment 2A: at which layers does a delta carry the tool, and more than the controls do?

    itl bench run intervention-layers --preset laptop --model MODEL --text FILE --out DIR

At each layer the MLP of the fine-tuned model is replaced by the base alone (`no_delta`), by base
and delta (`full`), and by four controls: the mean of what the block adds, the base with the mean of
what it leaves (a delta without features), the delta's output turned at random at equal norm, and a
delta trained on the model before it was fine-tuned.
"""

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
    conditions,
    differences,
    paired_table,
    tables,
)
from benchmarks.progress import Progress
from benchmarks.statistics import holm, percent
from benchmarks.toolformer_cells import Cells, publish_study, write_lines
from benchmarks.toolformer_study import InterventionConfig, Toolformer, Which, begin
from itl_agents.sites import fingerprint
from itl_agents.transcoder import check_model, site_for
from itl_env.toolformer import KINDS

BOTH: tuple[Which, ...] = ("tuned", "base")
FITS = (
    "layer", "L0 of the base", "unexplained", "L0 of the delta", "unexplained",
    "L0 of the untuned one", "unexplained",
)  # fmt: skip
N_CONDITIONS = 6  # besides the model as it is


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "layer": lambda row: "-" if row["layer"] is None else str(row["layer"]),
    "in place of the MLP": lambda row: str(row["condition"]),
}


@dataclass(frozen=True, kw_only=True)
class InterventionLayersConfig(InterventionConfig):
    """Replace one MLP at a time by a base, with and without a delta, and by controls."""

    out: Path = Path("runs/intervention-layers")  # folder of the table, figures and report


def intervention_layers(
    config: InterventionLayersConfig, tell: Callable[[str], None] = print
) -> None:
    """Run what is left of the study; write rows, figures and the report, and print the report."""
    from benchmarks.intervention_plots import differences_figure, layers_figure

    made = begin(config, config.out, "intervention-layers")
    rows, paired = _measured(made, config)
    results = {
        **made.course("intervention-layers"),
        "percentile": config.percentile,
        "d_new": config.n_new,
        "fits": _fits(made, config),
        "rows": rows,
        "differences": paired,
    }
    publish_study(config.out, results, report, tell)
    layers_figure(rows, config.out / "layers.png")
    differences_figure(paired, config.out / "differences.png")


def _fits(made: Toolformer, config: InterventionLayersConfig) -> list[Row]:
    """How well the bases and the deltas of either model fit what they were trained on."""
    rows = []
    for layer in made.layers:
        base = made.base(layer, config.percentile)
        row: Row = {"layer": layer, "base_unexplained": made.unexplained(base)}
        row["base_l0"] = base.about.l0
        for of in BOTH:
            about = made.delta(layer, config.percentile, config.n_new, of).about
            row |= {f"delta_{of}_unexplained": about.unexplained, f"delta_{of}_l0": about.l0}
        rows.append(row)
    return rows


def _measured(made: Toolformer, config: InterventionLayersConfig) -> tuple[list[Row], list[Row]]:
    """A row for each layer, condition and subset; and how `full` differs from each other one."""
    percentile, d_new, seed, out = config.percentile, config.n_new, config.seed, config.out
    for layer in made.layers:  # all that is trained, before anything is measured
        for of in BOTH:
            made.delta(layer, percentile, d_new, of)
    subject = made.subject(made.sizes.n_evaluate)
    model_hash = fingerprint(subject.model)
    cells = Cells(made.place("cells"), len(KINDS) * (1 + len(made.layers) * N_CONDITIONS))
    rows: list[Row] = []
    each: dict[tuple[int | None, str, str], list[Row]] = {}
    with Progress("cells", cells.total) as progress:

        def take(condition: Condition, layer: int | None, made_by: Mapping[str, Any]) -> None:
            for kind in KINDS:
                name = f"raw-{kind}"
                if layer is not None:
                    name = cell_name(layer, percentile, d_new, condition.name, kind)
                wanted = {"model": model_hash, "rows": subject.digest(kind), **made_by}
                measure = partial(subject.measured, condition, kind)
                found, written = cells.measured(name, wanted, measure, progress)
                write_lines(written, out / "generations" / f"{name}.jsonl")
                rows.append({"layer": layer, "condition": condition.name, **found})
                each[layer, condition.name, kind] = written

        first = site_for(made.base(made.layers[0], percentile), subject.model)
        take(Condition("raw", first, None), None, {})
        for layer in made.layers:
            base = made.base(layer, percentile)
            delta = made.delta(layer, percentile, d_new)
            untuned = made.delta(layer, percentile, d_new, "base")
            check_model(delta, subject.model)
            site = site_for(base, subject.model, layer)
            means = made.means(layer, base)
            for condition in conditions(site, base, delta, means, untuned, seed):
                # The doses 0 and 1, which `intervention-dose` need not measure again.
                made_by = {"base": base.hash, "delta": delta.hash}
                if condition.name not in DOSES.values():
                    made_by |= {"untuned": untuned.hash, "seed": str(seed)}
                take(condition, layer, made_by)
    paired = [
        {
            "layer": layer,
            "less": name,
            "subset": kind,
            **differences(each[layer, "full", kind], written),
        }
        for (layer, name, kind), written in each.items()
        if layer is not None and name != "full"
    ]
    return rows, paired


def findings(paired: Sequence[Row]) -> str:
    """A line for each layer: than what does `full` call more often in unseen phrasings?"""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in paired):
        own = [row for row in paired if (row["layer"], row["subset"]) == (layer, "tool_ood")]
        lines.append(f"- layer {layer}: {_told_apart(own)}")
    return "\n".join(lines)


def _told_apart(rows: Sequence[Row]) -> str:
    """In words: which of these `differences` of calls are told from 0.

    By McNemar's exact test at 5%, corrected by Holm for how many they are.
    """
    chances = holm([row["tool_call_p"] for row in rows])
    real = [p < 0.05 for p in chances]

    def named(which: Callable[[Row, bool], bool]) -> str:
        return ", ".join(
            str(row["less"]) for row, is_real in zip(rows, real, strict=True) if which(row, is_real)
        )

    said = {
        "more often than": named(lambda row, is_real: is_real and row["tool_call"] > 0),
        "less often than": named(lambda row, is_real: is_real and row["tool_call"] < 0),
        "not told apart from": named(lambda _, is_real: not is_real),
    }
    return "; ".join(f"{what} {names}" for what, names in said.items() if names)


def report(results: Mapping[str, Any]) -> str:
    """The study in words and tables, as Markdown."""
    rows, on = results["rows"], results["machine"]
    as_it_is = {row["subset"]: row for row in rows if row["condition"] == "raw"}
    raw = as_it_is["tool"]
    exact = {kind: percent(row["exact_right"], row["n"]) for kind, row in as_it_is.items()}
    fits = "\n".join(
        f"| {row['layer']} | {row['base_l0']:.0f} | {row['base_unexplained']:.3f} | "
        + " | ".join(
            f"{row[f'delta_{of}_l0']:.1f} | {row[f'delta_{of}_unexplained']:.3f}" for of in BOTH
        )
        + " |"
        for row in results["fits"]
    )
    return f"""# The tool behind one layer

{results["model"]}, fine-tuned to call a calculator as text: {exact["tool"]} of held-out
questions become exactly the call, {exact["copy"]} of sentences are copied without one ({raw["n"]}
of each; Wilson's 95% intervals). Machine: {on["cpu"]},
{on["cores"]} cores. Preset {results["preset"]}, seed {results["seed"]}. Deltas have
{results["d_new"]} features, beside the base of percentile {results["percentile"]:g}.

    {results["command"]}

`raw` is the model as it is; `no_delta` the base alone ({results["base"]}); `full` base and delta.
The controls: `mean ablation`, the mean of what the block adds; `bias only`, the base and the mean
of what it leaves; `turned delta`, base and the delta's output turned by one random orthogonal
matrix; `untuned delta`, base and a delta trained on the model before it was fine-tuned. Shares are
of all rows of a subset, with Wilson's 95% intervals; cross-entropy is that of the targets, in nats
a token. `tool_call`: the output begins with a call; `valid_format`: it is one and nothing else;
`math_correct`: that comes to the right value; `exact`: it is the target.

![shares against the layer](layers.png)

{tables(rows, COLUMNS)}

## What `full` has more than the others

Over the same rows, with 95% intervals of paired differences (Newcombe's of shares), and how many
rows only `full` and only the other has. A delta repairs what the base leaves
of any model, and adds what fine-tuning has changed: the latter is its difference from the
`untuned delta`, which repairs only.

![what full has more, in unseen phrasings](differences.png)

After questions in unseen phrasings (`tool_ood`), by McNemar's exact test at 5%, corrected by Holm
for the five comparisons of a layer, `full` begins with a call

{findings(results["differences"])}

{paired_table(results["differences"], ("layer", "less", "subset"))}

## How well they fit

Fraction of variance unexplained of what the block adds, on validation tokens: bases and untuned
deltas of the model before it was fine-tuned, deltas of the one after. L0 is that of the base, or of
the delta's own features.

| {" | ".join(FITS)} |
|---|---:|---:|---:|---:|---:|---:|
{fits}
"""
