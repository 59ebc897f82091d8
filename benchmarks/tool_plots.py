"""The figures of tool calling: of evaluations, and of a run's metrics."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from benchmarks.plots import save
from benchmarks.statistics import wilson
from benchmarks.tool_evaluation import ALL
from itl_agents.tool_metrics import METRICS

Rows = Sequence[Mapping[str, Any]]
SPREAD = 0.08  # inches from the first series to the last
PARTS = ("mean", "min", "max")
LINES = {"unseen": "-", "seen": "--"}
COUNTS = ("asked_seen", "right_seen", "asked_unseen", "right_unseen")
"""Columns of which the intervals are made."""


def evaluation_figure(rows: Rows, path: Path) -> None:
    """Each metric over steps in all categories, and right outcomes in each, with intervals.

    rows: of `ToolRunEvaluation.run`.
    """
    figure = Figure(figsize=(11, 4))
    metrics, categories = figure.subplots(1, 2, sharey=True)
    for place, metric in enumerate(METRICS):
        own = [row for row in rows if row["category"] == ALL]
        _shares(metrics, own, metric, metric, _aside(figure, place, len(METRICS)))
    names = list(dict.fromkeys(row["category"] for row in rows if row["category"] != ALL))
    for place, category in enumerate(names):
        own = [row for row in rows if row["category"] == category]
        label = f"{category} ({own[0]['n']:,})"
        _shares(categories, own, "right_outcome", label, _aside(figure, place, len(names)))
    metrics.set(ylabel=f"share of {rows[0]['part']} samples", title="all categories")
    categories.set_title("right_outcome by category")
    for axes in (metrics, categories):
        axes.set(xlabel="optimizer step", ylim=(-0.03, 1.03))
        _tidy(axes)
    figure.tight_layout()
    save(figure, path)


def _aside(figure: Figure, place: int, n: int) -> ScaledTranslation:
    """A shift by which no series hides another."""
    return ScaledTranslation(SPREAD * (place / max(n - 1, 1) - 0.5), 0, figure.dpi_scale_trans)


def _shares(axes: Axes, rows: Rows, metric: str, label: str, aside: ScaledTranslation) -> None:
    shares = [row[metric] for row in rows]
    low = [max(0.0, row[metric] - row[f"{metric}_low"]) for row in rows]
    high = [max(0.0, row[f"{metric}_high"] - row[metric]) for row in rows]
    steps = [row["step"] for row in rows]
    drawn = axes.errorbar(steps, shares, yerr=[low, high], fmt="o-", ms=4, capsize=3, label=label)
    for artist in drawn.get_children():
        artist.set_transform(axes.transData + aside)  # the axes' limits stay


def run_figures(rows: Rows, folder: Path) -> list[Path]:
    """Draw whatever columns the metrics of a run have; returns the files that are written.

    rows: of `metrics.jsonl`. `loss.png`: the loss; `reward.png`: the reward and each of its parts,
    the mean between the lowest and the highest; `kl.png`; `evaluations.png`: recall, or the metrics
    of tool calling, with Wilson intervals; `training.png`: every other column of numbers.
    """
    names = [name for name in _columns(rows) if name != "step"]
    rewards = [name for name in names if name.partition("/")[0] == "reward"]
    kl = [name for name in names if name.partition("/")[0] == "kl"]
    names = [name for name in names if name not in COUNTS]
    evaluated = [name for name in names if name.endswith(("_seen", "_unseen"))]
    rest = [name for name in names if name not in {"loss", *rewards, *kl, *evaluated}]
    written = []
    for file, draw, chosen in (
        ("loss.png", _panels, ["loss"] if "loss" in names else []),
        ("reward.png", _reward_panels, rewards),
        ("kl.png", _panels, kl),
        ("evaluations.png", _evaluations, evaluated),
        ("training.png", _panels, rest),
    ):
        if chosen:
            figure = draw(rows, chosen)
            figure.tight_layout()
            save(figure, folder / file)
            written.append(folder / file)
    return written


def _columns(rows: Rows) -> list[str]:
    """Columns of which at least one value is a number, in order."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if _is(value)))


def _is(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column where it has one."""
    there = [row for row in rows if _is(row.get(name))]
    return [row["step"] for row in there], [row[name] for row in there]


def _grid(n: int) -> tuple[Figure, list[Axes]]:
    """So many panels, at most three a row."""
    width = min(n, 3)
    height = -(-n // width)
    figure = Figure(figsize=(max(5.0, 3.8 * width), 3.2 * height))
    panels = list(figure.subplots(height, width, squeeze=False).flat)
    for panel in panels[n:]:
        panel.axis("off")
    return figure, panels[:n]


def _panels(rows: Rows, names: Sequence[str]) -> Figure:
    """A panel for each column."""
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        steps, values = _points(rows, name)
        axes.plot(steps, values, "o-", ms=3, lw=1.2)
        positive = all(value > 0 for value in values)
        if name == "loss" and positive:
            axes.set(yscale="log")
        axes.set(xlabel="optimizer step", title=name)
        if values and min(values) == max(values) == 0:
            axes.set_ylim(bottom=0)  # of a share, say
        _tidy(axes)
    return figure


def _reward_panels(rows: Rows, names: Sequence[str]) -> Figure:
    """A panel for the reward and for each of its parts: the mean, and a band of all."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        head, _, last = name.rpartition("/")
        which, group = (last, head) if head and last in PARTS else ("mean", name)
        groups.setdefault(group, {}).setdefault(which, name)
    figure, panels = _grid(len(groups))
    for axes, (group, found) in zip(panels, groups.items(), strict=True):
        if "min" in found and "max" in found:
            steps, low = _points(rows, found["min"])
            _, high = _points(rows, found["max"])
            axes.fill_between(steps, low, high, alpha=0.2, lw=0, label="lowest to highest")
        for which, name in found.items():
            if which == "mean" or "min" not in found or "max" not in found:
                axes.plot(*_points(rows, name), "o-", ms=3, lw=1.2, label=which)
        axes.set(xlabel="optimizer step", title=group)
        _tidy(axes)
    return figure


def _evaluations(rows: Rows, names: Sequence[str]) -> Figure:
    """A panel for each share, of what was trained on and of the rest, with Wilson intervals."""
    shares = list(dict.fromkeys(name.rpartition("_")[0] for name in names))
    if "right_outcome" in shares and "recall" in shares:
        shares.remove("recall")  # which is the same
    figure, panels = _grid(len(shares))
    for axes, share in zip(panels, shares, strict=True):
        for place, (who, line) in enumerate(LINES.items()):
            there = [row for row in rows if _is(row.get(f"{share}_{who}"))]
            if not there:
                continue
            values = [row[f"{share}_{who}"] for row in there]
            bars = [_around(row[f"{share}_{who}"], row.get(f"asked_{who}")) for row in there]
            below, above = ([bar[side] for bar in bars] for side in (0, 1))
            drawn = axes.errorbar(
                [row["step"] for row in there], values, yerr=[below, above], fmt="o", ls=line,
                ms=4, capsize=3, label=who,
            )  # fmt: skip
            for artist in drawn.get_children():
                artist.set_transform(axes.transData + _aside(figure, place, len(LINES)))
        axes.set(xlabel="optimizer step", title=share, ylim=(-0.03, 1.03))
        _tidy(axes)
    return figure


def _around(share: float, n: Any) -> tuple[float, float]:
    """How far the interval of a share goes down and up; nowhere if it is not known of how many."""
    if not n or not 0 <= share <= 1:
        return 0.0, 0.0
    low, high = wilson(round(share * n), int(n))
    return max(0.0, share - low), max(0.0, high - share)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
