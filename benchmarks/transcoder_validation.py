"""Experiment 1: how well do transcoders stand in for the MLPs of a fine-tuned model?

    itl bench run transcoder-validation --preset laptop --model MODEL --text FILE --out DIR

At each layer the MLP is replaced by the base of a percentile, alone and with deltas of several
sizes. Told are the reconstruction of what the block adds, over validation tokens, and the
cross-entropy of the targets of tool and copy rows against that of the model as it is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.interventions import Condition, Row
from benchmarks.progress import Progress
from benchmarks.statistics import clustered_mean
from benchmarks.toolformer_study import (
    Cells,
    Toolformer,
    ToolformerStudyConfig,
    begin,
    write_rows,
)
from itl_agents.sites import fingerprint
from itl_agents.transcoder import check_model, dosed, site_for
from itl_env.errors import ConfigError
from itl_env.files import write_text
from itl_env.toolformer import Kind
from itl_train.transcoder import Fit, fit_of

COLUMNS = (
    "layer", "percentile", "L0 of the base", "delta", "its L0", "unexplained", "cosine",
    "norm ratio", "change, tool", "change, copy",
)  # fmt: skip
SUBSETS: tuple[Kind, ...] = ("tool", "copy")


@dataclass(frozen=True, kw_only=True)
class TranscoderValidationConfig(ToolformerStudyConfig):
    """Replace one MLP at a time by a base, and by a base with a delta, and measure what is lost."""

    out: Path = Path("runs/transcoder-validation")  # folder of the table, figures and report
    percentiles: tuple[float, ...] = ()  # which bases, by L0; those of the preset if none is named
    d_new: tuple[int, ...] = ()  # features of deltas; those of the preset if none is named

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= each <= 1 for each in self.percentiles):
            raise ConfigError("percentiles must be from 0 to 1.")


def transcoder_validation(
    config: TranscoderValidationConfig, tell: Callable[[str], None] = print
) -> None:
    """Run what is left of the study; write rows, figures and the report, and print the report."""
    made = begin(config, config.out)
    percentiles = config.percentiles or made.sizes.percentiles
    sizes = config.d_new or made.sizes.d_new
    rows = _measured(made, config.out, percentiles, sizes)
    results = {**made.course(), "n_losses": made.sizes.n_losses, "rows": rows}
    write_rows(rows, config.out / "rows.csv")
    write_text(config.out / "results.json", json.dumps(results, indent=1) + "\n")
    from benchmarks.intervention_plots import validation_figures

    validation_figures(rows, config.out)
    text = report(results)
    write_text(config.out / "report.md", text)
    tell(text)


def _measured(
    made: Toolformer, out: Path, percentiles: Sequence[float], sizes: Sequence[int]
) -> list[Row]:
    """A row for each layer, percentile and size, 0 for the base alone."""
    for layer in made.layers:  # all that is trained, before anything is measured
        for percentile in percentiles:
            for d_new in sizes:
                made.delta(layer, percentile, d_new)
    subject = made.subject(made.sizes.n_losses)
    model_hash = fingerprint(subject.model)
    n = len(made.layers) * len(percentiles) * (1 + len(sizes))
    cells = Cells(out / "cells", n + 1, "cells")
    _, validation = made.activations("tuned")
    rows: list[Row] = []
    with Progress("cells", n + 1) as progress:

        def losses(condition: Condition) -> dict[str, list[float]]:
            return {kind: subject.losses(condition, kind) for kind in SUBSETS}

        site = site_for(made.base(made.layers[0], percentiles[0]), subject.model)
        made_by = {"model": model_hash, "n": made.sizes.n_losses}
        raw = cells.measured("raw", made_by, lambda: losses(Condition("raw", site, None)), progress)
        for layer in made.layers:
            read, wrote = validation.read(layer), validation.wrote(layer)
            step = max(1, len(read) // 20_000)
            for percentile in percentiles:
                base = made.base(layer, percentile)
                site = site_for(base, subject.model, layer)
                for d_new in (0, *sizes):
                    delta = made.delta(layer, percentile, d_new) if d_new else None
                    if delta is not None:
                        check_model(delta, subject.model)

                    instead = base.replacement() if delta is None else dosed(base, delta)
                    condition = Condition("", site, instead)
                    fit = partial(
                        fit_of, delta or base, read[::step], wrote[::step], delta and base
                    )
                    found = cells.measured(
                        f"layer-{layer:02d}-percentile-{percentile * 100:g}-d-{d_new}",
                        {**made_by, "base": base.hash, "delta": delta and delta.hash},
                        partial(_fit_and_losses, fit, partial(losses, condition)),
                        progress,
                    )
                    rows.append(
                        {
                            "layer": layer,
                            "percentile": percentile,
                            "d_new": d_new,
                            "base_l0": base.about.l0,
                            **found["fit"],
                            **_changes(found["losses"], raw),
                        }
                    )
    return rows


def _fit_and_losses(
    fit: Callable[[], Fit], losses: Callable[[], dict[str, list[float]]]
) -> dict[str, Any]:
    return {"fit": asdict(fit()), "losses": losses()}


def _changes(own: Mapping[str, Sequence[float]], raw: Mapping[str, Sequence[float]]) -> Row:
    """Mean cross-entropy by subset, and its mean change with half of its 95% interval."""
    found: Row = {}
    for kind in SUBSETS:
        change = [a - b for a, b in zip(own[kind], raw[kind], strict=True)]
        mean, half = clustered_mean(change, [1] * len(change))
        found |= {
            f"cross_entropy_{kind}": sum(own[kind]) / len(own[kind]),
            f"change_{kind}": mean,
            f"change_{kind}_half": half,
        }
    return found


def report(results: Mapping[str, Any]) -> str:
    """The study in words and tables, as Markdown."""
    rows, on = results["rows"], results["machine"]
    lines = [
        f"| {row['layer']} | {row['percentile']:g} | {row['base_l0']:.0f} | "
        f"{row['d_new'] or 'base alone'} | {row['l0']:.1f} | {row['unexplained']:.3f} | "
        f"{row['cosine']:.3f} | {row['ratio']:.3f} | "
        + " | ".join(
            f"{row[f'change_{kind}']:+.3f} ± {row[f'change_{kind}_half']:.3f}" for kind in SUBSETS
        )
        + " |"
        for row in rows
    ]
    table = "\n".join(lines)
    tuning = results["tuning"]
    return f"""# Transcoders in place of MLPs

{results["model"]}, fine-tuned to call a calculator as text: {tuning["exact"]:.1%} of
{tuning["asked_tool"]} held-out questions become exactly the call, {tuning["copy_exact"]:.1%} of
{tuning["asked_copy"]} sentences are copied without one. Machine: {on["cpu"]}, {on["cores"]} cores.
Preset {results["preset"]}, seed {results["seed"]}.

Bases were trained on the model before it was fine-tuned, deltas on the one after. Reconstruction
is of what the fine-tuned block adds, over validation tokens: fraction of variance unexplained,
cosine and ratio of norms a token. `change` is that of the cross-entropy of targets in nats a token,
over {results["n_losses"]} rows of a subset, with its 95% interval over rows.

| {" | ".join(COLUMNS)} |
|---|---|---:|---|---:|---:|---:|---:|---:|---:|
{table}
"""
