"""The figures of a calculator tool seen from inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
    figure = Figure(figsize=(3.4 * len(percentiles) + 0.6, 3.2 * len(panels)))
    grid = figure.subplots(len(panels), len(percentiles), squeeze=False)
    for line, (column, said) in zip(grid, panels.items(), strict=True):
        values = [row[column] for row in rows]
        for axes, percentile in zip(line, percentiles, strict=True):
            found = {
                (row["layer"], row["d_new"]): row[column]
                for row in rows
                if row["percentile"] == percentile
            }
            table = [[found[layer, size] for layer in layers] for size in sizes]
            axes.imshow(
                table, vmin=min(0.0, *values), vmax=max(values), cmap="YlOrRd", aspect="auto"
            )
            for y, entries in enumerate(table):
                for x, value in enumerate(entries):
                    axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=8)
            axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
            axes.set_yticks(range(len(sizes)), [str(size or "base") for size in sizes])
            axes.set(xlabel="layer", ylabel="features of the delta")
            axes.set_title(f"{said}\nbase of percentile {percentile:g}", fontsize=9)
    figure.tight_layout()
    save(figure, folder / "heat.png")


def layers_figure(rows: Rows, path: Path) -> None:
    """Calls and exact outputs of each subset against the layer, for each condition."""
    figure = Figure(figsize=(4.2 * len(KINDS), 3.1 * len(METRICS)))
    grid = figure.subplots(len(METRICS), len(KINDS), squeeze=False, sharey=True)
    for line, metric in zip(grid, METRICS, strict=True):
        for axes, kind in zip(line, KINDS, strict=True):
            own = [row for row in rows if row["subset"] == kind]
            (raw,) = [row for row in own if row["condition"] == "raw"]
            axes.axhline(raw[metric], color="black", lw=1, ls=":", label="raw")
            for name, colour in COLOURS.items():
                some = [row for row in own if row["condition"] == name]
                if some:
                    _line(axes, some, "layer", metric, name, colour)
            axes.set(xlabel="layer whose MLP is replaced", title=f"{kind} (n = {raw['n']})")
            axes.set(ylim=(-0.03, 1.03))
        line[0].set_ylabel(f"share: {metric}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    save(figure, path)


def differences_figure(paired: Rows, path: Path) -> None:
    """What `full` has more than each other condition on unseen words, in points, by layer."""
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
            shift = (place - (len(others) - 1) / 2) * 0.14
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
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    save(figure, path)


def dose_figure(rows: Rows, path: Path) -> None:
    """Calls and exact outputs of each subset against alpha, for each layer."""
    layers = sorted({row["layer"] for row in rows})
    figure = Figure(figsize=(4.2 * len(KINDS), 3.1 * len(METRICS)))
    grid = figure.subplots(len(METRICS), len(KINDS), squeeze=False, sharey=True)
    for line, metric in zip(grid, METRICS, strict=True):
        for axes, kind in zip(line, KINDS, strict=True):
            own = [row for row in rows if row["subset"] == kind]
            for place, layer in enumerate(layers):
                some = [row for row in own if row["layer"] == layer]
                _line(axes, some, "alpha", metric, f"layer {layer}", f"C{place}")
            axes.set(xlabel="alpha", title=f"{kind} (n = {own[0]['n']})", ylim=(-0.03, 1.03))
        line[0].set_ylabel(f"share: {metric}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    save(figure, path)


def _line(axes: Axes, rows: Rows, x: str, metric: str, label: str, colour: str) -> None:
    """A share with Wilson intervals."""
    values = [row[metric] for row in rows]
    below = [max(0.0, row[metric] - row[f"{metric}_low"]) for row in rows]
    above = [max(0.0, row[f"{metric}_high"] - row[metric]) for row in rows]
    axes.errorbar(
        [row[x] for row in rows], values, yerr=[below, above], fmt="o-", ms=4, lw=1.3, capsize=2,
        label=label, color=colour,
    )  # fmt: skip
    if x == "layer":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
