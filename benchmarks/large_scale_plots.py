"""The figures of the large-scale study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from benchmarks.plots import CHANCE, save
from benchmarks.reference import LARGE_SCALE, RECALL
from benchmarks.statistics import Z

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[Mapping[str, Any]]
MARKS = {"in-weight": "o", "in-tool": "s"}
LINES = {"in-weight": "-", "in-tool": "--"}
SPREAD = 0.12  # inches from the first series to the last, so that no interval hides another


def facts_figure(rows: Rows, path: Path) -> Figure:
    """Against facts: HellaSwag, absolute and relative, drift, and steps to the recall; and recall
    against the model's size.
    """
    figure = Figure(figsize=(13, 7))
    axes = figure.subplots(2, 3).flat
    hellaswag, relative, drift, steps, size, legend = axes
    series = list(dict.fromkeys((r["model"], r["mode"], r["trained"]) for r in rows))
    models = list(dict.fromkeys(model for model, _, _ in series))
    for place, (model, mode, trained) in enumerate(series):
        own = sorted(
            (r for r in rows if (r["model"], r["mode"], r["trained"]) == series[place]),
            key=lambda r: r["n_facts"],
        )
        colour = f"C{models.index(model) if len(models) > 1 else place}"
        style = {
            "color": colour, "marker": MARKS[mode], "ls": LINES[mode], "capsize": 3,
            "label": f"{model}, {mode}, {trained}",
            "mfc": colour if trained.startswith("all weights") else "white",
        }  # fmt: skip
        aside = SPREAD * (place / max(len(series) - 1, 1) - 0.5)
        shift = ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        for each, x, y in (
            (hellaswag, "n_facts", "hellaswag_acc"),
            (relative, "n_facts", "hellaswag_acc_relative"),
            (drift, "n_facts", "drift_tv"),
            (steps, "n_facts", "steps_to_recall"),
            (size, "parameters", "seen_recall"),
        ):
            for drawn in _points(each, own, x, y, style):
                drawn.set_transform(each.transData + shift)  # the axes' limits stay
    _published(relative, drift, steps)
    for each, (x, y) in {
        hellaswag: ("facts", "HellaSwag, accuracy"),
        relative: ("facts", "HellaSwag, share of the base's"),
        drift: ("facts", "TV from the base"),
        steps: ("facts", f"steps to a recall of {RECALL}"),
        size: ("parameters of the model", "recall of facts trained on"),
    }.items():
        # On a logarithmic axis, models of nearly one size would have no tick between them.
        each.set(xscale="log" if each is not size or len(models) > 1 else "linear")
        each.set(xlabel=x, ylabel=y)
        each.spines[["top", "right"]].set_visible(False)
    steps.set_yscale("log")
    relative.axhline(1.0, color=CHANCE, lw=1, ls=":")
    legend.axis("off")
    handles, labels = drift.get_legend_handles_labels()
    if not handles:
        handles, labels = size.get_legend_handles_labels()
    legend.legend(handles, labels, frameon=False, fontsize=8, loc="center left")
    figure.tight_layout()
    save(figure, path)
    return figure


def steps_figure(checkpoints: "pd.DataFrame", path: Path) -> Figure:
    """Against steps: recall, HellaSwag and drift of every run; and loss against KL."""
    figure = Figure(figsize=(13, 3.6))
    recall, hellaswag, drift, loss = figure.subplots(1, 4)
    hellaswag.axhline(0.0, color=CHANCE, lw=1, ls=":")
    for place, (_, run) in enumerate(checkpoints.groupby("cell", sort=False)):
        rows = run.sort_values("step").to_dict("records")
        first = rows[0]
        label = (
            f"{first['model']}, {first['mode']}, {first['n_facts']:,.0f} facts, {first['trained']}"
        )
        style = {
            "color": f"C{place}", "marker": ".", "ls": LINES[first["mode"]], "capsize": 2,
            "label": label,
        }  # fmt: skip
        _points(recall, rows, "step", "seen_recall", style)
        _points(hellaswag, rows, "step", "hellaswag_acc_change", style)
        _points(drift, rows, "step", "drift_tv", style)
        _points(loss, rows, "loss", "drift_kl", {**style, "ls": ""})
    for each, (x, y) in {
        recall: ("optimizer step", "recall of facts trained on"),
        hellaswag: ("optimizer step", "HellaSwag, change from the base"),
        drift: ("optimizer step", "TV from the base"),
        loss: ("training loss (nats/token)", "KL from the base (nats)"),
    }.items():
        each.set(xlabel=x, ylabel=y)
        if each is not loss:  # runs take from tens to thousands of steps, and each begins at 0
            each.set_xscale("symlog", linthresh=10)
        each.spines[["top", "right"]].set_visible(False)
    handles, labels = recall.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=8, loc="upper center", ncols=2,
        bbox_to_anchor=(0.5, 0.0),
    )  # fmt: skip
    figure.tight_layout()
    save(figure, path)
    return figure


def _points(axes: Axes, rows: Rows, x: str, y: str, style: Mapping[str, Any]) -> Sequence[Artist]:
    """Draw the rows that have both figures, with the 95% interval where it is known."""
    kept = [row for row in rows if _there(row, x) and _there(row, y)]
    if not kept:
        return []
    values = [row[y] for row in kept]
    ends = [_interval(row, y) for row in kept]
    bars = [
        [value - low for value, (low, _) in zip(values, ends, strict=True)],
        [high - value for value, (_, high) in zip(values, ends, strict=True)],
    ]
    return axes.errorbar([row[x] for row in kept], values, yerr=bars, **style).get_children()


def _interval(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The ends of a figure's interval, or the figure itself where none is known."""
    ends = [f"{name.removesuffix('_recall')}_{end}" for end in ("low", "high")]
    if all(_there(row, end) for end in ends):
        return row[ends[0]], row[ends[1]]
    half = Z * row[f"{name}_error"] if _there(row, f"{name}_error") else 0.0
    return row[name] - half, row[name] + half


def _there(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return value is not None and value == value  # a missing number is not equal to itself


def _published(relative: Axes, drift: Axes, steps: Axes) -> None:
    """Every published figure, faintly."""
    for mode, mark in MARKS.items():
        points = [(n, f) for (_, m, n), f in LARGE_SCALE.items() if m == mode]
        faint: dict[str, Any] = {"color": CHANCE, "marker": mark, "ls": "", "mfc": "none"}
        faint["alpha"] = 0.5
        label = f"published, six models, {mode}"
        relative.plot(
            [n for n, _ in points], [f.hellaswag / 100 for _, f in points], label=label, **faint
        )
        for axes, name in ((drift, "tv"), (steps, "steps")):
            there = [(n, getattr(f, name)) for n, f in points if getattr(f, name) is not None]
            axes.plot(*zip(*there, strict=True), label=label, **faint)
