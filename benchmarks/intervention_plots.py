"""The figures of a calculator tool seen from inside."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from benchmarks.plots import save
from itl_env.toolformer import KINDS

Rows = Sequence[Mapping[str, Any]]

COLOURS = {
    "full": "#1b7f79",
    "no_delta": "#c8553d",
    "mean ablation": "#8c8c8c",
    "bias only": "#d9a441",
    "turned delta": "#7a5ba6",
    "untuned delta": "#4f7cac",
}
METRICS = ("tool_call", "exact")  # of tool rows and of copies alike


def validation_figures(rows: Rows, folder: Path) -> None:
    """`heat.png`: unexplained variance and change of cross-entropy over layers and deltas."""
    percentiles = sorted({row["percentile"] for row in rows})
    layers = sorted({row["layer"] for row in rows})
    sizes = sorted({row["d_new"] for row in rows})
    panels = {
        "unexplained": "unexplained variance",
        "change_tool_ood": "change of cross-entropy, tool_ood",
    }
    figure = Figure(figsize=(3.4 * len(percentiles) + 1.4, 3.2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(percentiles), squeeze=False)
    for line, (column, said) in zip(grid, panels.items(), strict=True):
        values = [row[column] for row in rows]
        norm = Normalize(min(0.0, *values), max(values))
        for axes, percentile in zip(line, percentiles, strict=True):
            found = {
                (row["layer"], row["d_new"]): row[column]
                for row in rows
                if row["percentile"] == percentile
            }
            table = [[found[layer, size] for layer in layers] for size in sizes]
            image = axes.imshow(table, norm=norm, cmap="YlOrRd", aspect="auto")
            for y, entries in enumerate(table):
                for x, value in enumerate(entries):
                    colour = "white" if norm(value) > 0.6 else "black"
                    axes.text(
                        x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color=colour
                    )
            axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
            axes.set_yticks(range(len(sizes)), [str(size or "base") for size in sizes])
            axes.set(xlabel="layer", ylabel="features of the delta")
            axes.set_title(f"{said}\nbase of percentile {percentile:g}", fontsize=9)
        figure.colorbar(image, ax=line)
    save(figure, folder / "heat.png")


def layers_figure(rows: Rows, path: Path) -> None:
    """Calls and exact outputs of each subset against the layer, for each condition."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    figure, panels = _panels()
    for axes, kind, metric in panels:
        own = [row for row in rows if row["subset"] == kind]
        (raw,) = [row for row in own if row["condition"] == "raw"]
        axes.axhline(raw[metric], color="black", lw=1, ls=":", label="raw")
        axes.axhspan(raw[f"{metric}_low"], raw[f"{metric}_high"], color="black", alpha=0.06, lw=0)
        for place, (name, colour) in enumerate(COLOURS.items()):
            some = [row for row in own if row["condition"] == name]
            at = [layers.index(row["layer"]) + _beside(place, len(COLOURS)) for row in some]
            _shares(axes, at, some, metric, name, colour, "o")
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set(xlabel="layer whose MLP is replaced", title=f"{kind} (n = {raw['n']})")
    _finish(figure, path)


def differences_figure(paired: Rows, path: Path) -> None:
    """What `full` has more than each other condition in unseen phrasings, in points, by layer."""
    figure = Figure(figsize=(5.2 * len(METRICS), 3.6))
    layers = sorted({row["layer"] for row in paired})
    others = [name for name in COLOURS if name != "full"]
    for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
        axes.axhline(0, color="black", lw=1, ls=":")
        for place, name in enumerate(others):
            own = {
                row["layer"]: row
                for row in paired
                if (row["less"], row["subset"]) == (name, "tool_ood")
            }
            shift = _beside(place, len(others))
            values = [100 * row[metric] for row in own.values()]
            below = [100 * (row[metric] - row[f"{metric}_low"]) for row in own.values()]
            above = [100 * (row[f"{metric}_high"] - row[metric]) for row in own.values()]
            axes.errorbar(
                [layers.index(layer) + shift for layer in own], values, yerr=[below, above],
                fmt="o", ms=5, capsize=3, color=COLOURS[name], label=name,
            )  # fmt: skip
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set(xlabel="layer whose MLP is replaced", title=f"{metric}, tool_ood")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("full less the other, points")
    _finish(figure, path)


def dose_figure(rows: Rows, path: Path) -> None:
    """Calls and exact outputs of each subset against alpha, for each layer."""
    layers = sorted({row["layer"] for row in rows})
    alphas = sorted({row["alpha"] for row in rows})
    apart = min((b - a for a, b in pairwise(alphas)), default=1.0)
    figure, panels = _panels()
    for axes, kind, metric in panels:
        own = [row for row in rows if row["subset"] == kind]
        for place, layer in enumerate(layers):
            some = [row for row in own if row["layer"] == layer]
            at = [row["alpha"] + 0.5 * apart * _beside(place, len(layers)) for row in some]
            _shares(axes, at, some, metric, f"layer {layer}", f"C{place}", "o-")
        axes.set(xlabel="alpha", title=f"{kind} (n = {own[0]['n']})")
    _finish(figure, path)


def _panels() -> tuple[Figure, list[tuple[Axes, str, str]]]:
    """A figure with a panel for each metric and subset, which each have a range of their own."""
    figure = Figure(figsize=(4.2 * len(KINDS), 3.1 * len(METRICS)))
    grid = figure.subplots(len(METRICS), len(KINDS), squeeze=False)
    panels: list[tuple[Axes, str, str]] = []
    for line, metric in zip(grid, METRICS, strict=True):
        line[0].set_ylabel(f"share: {metric}")
        for axes, kind in zip(line, KINDS, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            panels.append((axes, kind, metric))
    return figure, panels


def _beside(place: int, n: int) -> float:
    """How far the place-th of n marks stands from the middle, that none hides another."""
    return (place - (n - 1) / 2) * 0.7 / n


def _shares(
    axes: Axes, at: Sequence[float], rows: Rows, metric: str, label: str, colour: str, form: str
) -> None:
    """Shares with their Wilson intervals."""
    values = [row[metric] for row in rows]
    below = [max(0.0, row[metric] - row[f"{metric}_low"]) for row in rows]
    above = [max(0.0, row[f"{metric}_high"] - row[metric]) for row in rows]
    axes.errorbar(
        at, values, yerr=[below, above], fmt=form, ms=4, lw=1.3, capsize=2, label=label,
        color=colour,
    )  # fmt: skip


def _finish(figure: Figure, path: Path) -> None:
    """Write a figure whose panels share one legend."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    save(figure, path)
