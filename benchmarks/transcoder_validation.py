"""Experiment 1: how well do transcoders stand in for the MLPs of a fine-tuned model?

    itl bench run transcoder-validation --preset laptop --model MODEL --text FILE --out DIR

At each layer the MLP is replaced by the base of a percentile, alone and with deltas of several
sizes. Told are the reconstruction of what the block adds, over validation tokens, and the
cross-entropy of the targets of tool and copy rows against that of the model as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.interventions import Condition, Row, pair_name
from benchmarks.progress import Progress
from benchmarks.statistics import paired_difference, percent
from benchmarks.toolformer_cells import Cells, publish_study
from benchmarks.toolformer_study import SIZES, Toolformer, ToolformerStudyConfig, begin
from itl_agents.gemma_scope import at_percentile
from itl_agents.sites import fingerprint
from itl_agents.transcoder import check_model, dosed, site_for
from itl_env.errors import ConfigError
from itl_env.toolformer import KINDS
from itl_train.transcoder import Fit, fit_of, warn_unexplained
from itl_train.transcoder_config import check_features

COLUMNS = (
    "layer", "percentile", "L0 of the base", "delta", "its L0", "unexplained", "cosine",
    "norm ratio", "change, tool", "change, copy", "change, tool_ood",
)  # fmt: skip


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
        check_features(self.d_new)
        if not self.base:
            n = len(self.sparsities or SIZES[self.preset].sparsities)
            picked = [at_percentile(n, each) for each in self.percentiles]
            if len(set(picked)) < len(picked):
                raise ConfigError(
                    f"Two of the percentiles pick the same base, of {n} a layer; train more: "
                    "--sparsities."
                )


def transcoder_validation(
    config: TranscoderValidationConfig, tell: Callable[[str], None] = print
) -> None:
    """Run what is left of the study; write rows, figures and the report, and print the report."""
    from benchmarks.intervention_plots import validation_figures

    made = begin(config, config.out, "transcoder-validation")
    percentiles = config.percentiles or made.sizes.percentiles
    sizes = config.d_new or made.sizes.d_new
    rows, raw = _measured(made, percentiles, sizes)
    results = {
        **made.course("transcoder-validation"),
        "n_losses": made.sizes.n_losses,
        "raw": raw,
        "rows": rows,
    }
    publish_study(config.out, results, report, tell)
    validation_figures(rows, config.out)


def _measured(
    made: Toolformer, percentiles: Sequence[float], sizes: Sequence[int]
) -> tuple[list[Row], Row]:
    """A row for each layer, percentile and size, 0 for the base alone; and the model as it is."""
    for layer in made.layers:  # all that is trained, before anything is measured
        for percentile in percentiles:
            for d_new in sizes:
                made.delta(layer, percentile, d_new)
    subject = made.subject(made.sizes.n_losses)
    model_hash = fingerprint(subject.model)
    n = len(made.layers) * len(percentiles) * (1 + len(sizes))
    cells = Cells(made.place("cells-validation"), n + 1)
    rows: list[Row] = []
    with Progress("cells", n + 1) as progress:

        def losses(condition: Condition) -> dict[str, list[float]]:
            return {
                kind: [score.loss for score in subject.scores(condition, kind)] for kind in KINDS
            }

        site = site_for(made.base(made.layers[0], percentiles[0]), subject.model)
        made_by = {"model": model_hash, "rows": [subject.digest(kind) for kind in KINDS]}
        raw = cells.measured("raw", made_by, lambda: losses(Condition("raw", site, None)), progress)
        for layer in made.layers:
            _, validation = made.activations("tuned", layer)
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
                        pair_name(layer, percentile, d_new),
                        {**made_by, "base": base.hash, "delta": delta and delta.hash},
                        partial(_fit_and_losses, fit, partial(losses, condition)),
                        progress,
                    )
                    which = f"of layer {layer}, percentile {percentile:g}"
                    which += f" with {d_new:,} new features" if d_new else ""
                    warn_unexplained(found["fit"]["unexplained"], which)
                    rows.append(
                        {
                            "layer": layer,
                            "percentile": percentile,
                            "d_new": d_new,
                            "base_l0": base.about.l0,
                            "base_unexplained": made.unexplained(base),
                            **found["fit"],
                            **_changes(found["losses"], raw),
                        }
                    )
    return rows, {kind: sum(losses) / len(losses) for kind, losses in raw.items()}


def _fit_and_losses(
    fit: Callable[[], Fit], losses: Callable[[], dict[str, list[float]]]
) -> dict[str, Any]:
    return {"fit": asdict(fit()), "losses": losses()}


def _changes(own: Mapping[str, Sequence[float]], raw: Mapping[str, Sequence[float]]) -> Row:
    """Mean cross-entropy by subset, and its mean change with half of its 95% interval."""
    found: Row = {}
    for kind in KINDS:
        mean, _, high = paired_difference(own[kind], raw[kind])
        found |= {
            f"cross_entropy_{kind}": sum(own[kind]) / len(own[kind]),
            f"change_{kind}": mean,
            f"change_{kind}_half": high - mean,
        }
    return found


def _mean(rows: Sequence[Row], percentile: float, d_new: int, column: str) -> float:
    found = [
        float(row[column])
        for row in rows
        if (row["percentile"], row["d_new"]) == (percentile, d_new)
    ]
    return sum(found) / len(found)


def report(results: Mapping[str, Any]) -> str:
    """The study in words and tables, as Markdown."""
    rows, on = results["rows"], results["machine"]
    lines = [
        f"| {row['layer']} | {row['percentile']:g} | {row['base_l0']:.0f} | "
        f"{row['d_new'] or 'base alone'} | {row['l0']:.1f} | {row['unexplained']:.3f} | "
        f"{row['cosine']:.3f} | {row['ratio']:.3f} | "
        + " | ".join(
            f"{row[f'change_{kind}']:+.4f} ± {row[f'change_{kind}_half']:.4f}" for kind in KINDS
        )
        + " |"
        for row in rows
    ]
    table = "\n".join(lines)
    tuning = results["tuning"]
    exact = percent(tuning["right_tool"], tuning["asked_tool"])
    copied = percent(tuning["right_copy"], tuning["asked_copy"])
    kinds = list(dict.fromkeys((row["percentile"], row["d_new"]) for row in rows))
    means = "\n".join(
        f"| {percentile:g} | {d_new or 'base alone'} | "
        + " | ".join(
            f"{_mean(rows, percentile, d_new, column):.4f}"
            for column in ("unexplained", "cosine", "ratio", *(f"change_{k}" for k in KINDS))
        )
        + " |"
        for percentile, d_new in kinds
    )
    bases = ", ".join(
        f"{row['base_unexplained']:.3f} at layer {row['layer']} (L0 {row['base_l0']:.0f})"
        for row in rows
        if not row["d_new"]
    )
    raw = ", ".join(f"{results['raw'][kind]:.4f} ({kind})" for kind in KINDS)
    return f"""# Transcoders in place of MLPs

{results["model"]}, fine-tuned to call a calculator as text: {exact} of {tuning["asked_tool"]}
held-out questions become exactly the call, {copied} of {tuning["asked_copy"]} sentences are copied
without one (Wilson's 95% intervals). Machine: {on["cpu"]}, {on["cores"]} cores. Preset
{results["preset"]}, seed {results["seed"]}.

    {results["command"]}

Bases: {results["base"]}; deltas were trained on the one after. Reconstruction
is of what the fine-tuned block adds, over validation tokens: fraction of variance unexplained,
cosine and ratio of norms a token. `change` is that of the cross-entropy of targets in nats a token,
over {results["n_losses"]} rows of a subset, with its 95% interval over rows; as it is, the
model has {raw}.

![unexplained variance and change of cross-entropy](heat.png)

| {" | ".join(COLUMNS)} |
|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|
{table}

Means over layers:

| percentile | delta | {" | ".join(COLUMNS[5:])} |
|---|---|---:|---:|---:|---:|---:|---:|
{means}

Of the models that they were trained on, the bases leave {bases}.
"""
