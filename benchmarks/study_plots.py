"""The four figures of the memory-load studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from benchmarks.plots import CHANCE, CIRCUIT, IN_TOOL, IN_WEIGHT, save
from benchmarks.reference import (
    AT_MOST,
    BITS_PER_PARAMETER,
    BITS_PER_PERSON,
    BOUNDS_IN_TOOL,
    BOUNDS_IN_WEIGHT,
    COMPRESSIBILITY,
    GENERALISATION,
    LINE_OF_MEANS,
    RECALL,
)
from itl_env.facts import ATTRIBUTES

COLOURS = {"in-tool": IN_TOOL, "in-weight": IN_WEIGHT}
Rows = Sequence[Mapping[str, Any]]


def bounds_figure(
    minima: Rows, fit: Mapping[str, float] | None, built: Mapping[str, int], path: Path
) -> None:
    """Smallest P against facts: ours, the published ones, the fitted line, the theory's bounds.

    built: the size of the circuit that needs no training.
    """
    figure = Figure(figsize=(7.5, 5))
    axes = figure.subplots()
    for mode, published in (("in-weight", BOUNDS_IN_WEIGHT), ("in-tool", BOUNDS_IN_TOOL)):
        points = [(4 * n, p) for n, p in published.items() if p is not None]
        axes.plot(  # rings, so wide that a point of ours does not hide one
            *zip(*points, strict=True), "o", mfc="none", color=COLOURS[mode], ms=9,
            label=f"{mode}, published",
        )  # fmt: skip
        _minima(axes, [row for row in minima if row["mode"] == mode], "facts", mode, COLOURS[mode])
    span = sorted({row["facts"] for row in minima} | {4 * n for n in BOUNDS_IN_WEIGHT})
    x = np.geomspace(span[0], span[-1], 200)
    if fit:
        own = np.geomspace(span[0], max(row["facts"] for row in minima), 200)
        axes.plot(
            own, fit["slope"] * own + fit["intercept"], color=IN_WEIGHT, lw=1,
            label=f"fit: {fit['slope']:.2f} facts + {fit['intercept']:,.0f}",
        )  # fmt: skip
    axes.plot(
        x, LINE_OF_MEANS[0] * x + LINE_OF_MEANS[1], color=IN_WEIGHT, lw=1, ls=":",
        label=f"published sizes, fitted alike: {LINE_OF_MEANS[0]:.2f} facts + {LINE_OF_MEANS[1]:,}",
    )  # fmt: skip
    for (name, bits), style in zip(BITS_PER_PARAMETER.items(), ("--", "-."), strict=True):
        axes.plot(
            x, x * BITS_PER_PERSON / len(ATTRIBUTES) / bits, color=CHANCE, lw=1, ls=style,
            label=f"theorem 3.2 at {name.partition(' (')[0]} a parameter",
        )  # fmt: skip
    for name, what, style in (("parameters", "all", "-"), ("nonzero", "not zero", ":")):
        axes.axhline(
            built[name], color=CIRCUIT, lw=1.5, ls=style,
            label=f"theorem 4.2, built by hand: {built[name]:,} {what}",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="facts", ylabel="smallest P, parameters")
    axes.set_ylim(bottom=500)
    axes.set_title(f"parameters for a recall of {RECALL}", fontsize=10)
    _finish(figure, axes, path, columns=2)


def recall_figure(rows: Rows, path: Path) -> None:
    """Recall on the people trained on against P, a line for each number of people."""
    figure = Figure(figsize=(9, 3.8))
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, mode in zip(both, ("in-weight", "in-tool"), strict=True):
        own = [row for row in rows if row["mode"] == mode]
        sizes = sorted({int(row["n_people"]) for row in own})
        for n, shade in zip(sizes, np.linspace(0.35, 1, len(sizes)), strict=True):
            _curve(
                axes, [row for row in own if row["n_people"] == n], "parameters", "seen_recall",
                label=f"{n:,} people", color=COLOURS[mode], alpha=shade,
            )  # fmt: skip
        axes.axhline(RECALL, color=CHANCE, lw=1, ls="--")
        axes.set(xscale="log", xlabel="P, parameters", title=mode)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("recall on the people trained on")
    figure.tight_layout()
    save(figure, path)


def generalisation_figure(rows: Rows, path: Path) -> None:
    """Recall on unseen names against people trained on, a line for each width."""
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    widths = sorted({int(row["d_model"]) for row in rows})
    for place, width in enumerate(widths):
        own = [row for row in rows if row["d_model"] == width]
        _curve(
            axes, own, "n_people", "unseen_recall",
            label=f"P = {own[0]['parameters']:,}", color=f"C{place}",
        )  # fmt: skip
    for place, (label, published) in enumerate(GENERALISATION.items()):
        axes.plot(
            *zip(*published.items(), strict=True), ":", marker="o", mfc="none", lw=1, ms=4,
            color=f"C{place}", label=f"published, {label}",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="people trained on", ylabel="in-tool recall on unseen names")
    axes.set_ylim(-0.03, 1.03)
    _finish(figure, axes, path, columns=2)


def compressibility_figure(minima: Rows, path: Path) -> None:
    """Smallest P against the correlation of the world, and recall at a P that is too small.

    Ours and the published ones on the left, ours on the right.
    """
    figure = Figure(figsize=(11, 4))
    axes, fixed = figure.subplots(1, 2, width_ratios=(3, 2))
    numbers = sorted({int(row["n_people"]) for row in minima})
    for n in numbers:
        every = [row for row in minima if row["n_people"] == n]
        _minima(axes, every, "correlation", f"{n:,} people", IN_WEIGHT)
        axes.plot(
            [row["correlation"] for row in every], [row["bits"] / 2 for row in every],
            color=CHANCE, lw=1, label=f"{n:,} people, entropy at 2 bits a parameter",
        )  # fmt: skip
    for (n, published), style in zip(COMPRESSIBILITY.items(), (":", "-."), strict=True):
        axes.plot(
            *zip(*published.items(), strict=True), style, marker="o", mfc="none", lw=1, ms=4,
            color=IN_WEIGHT, alpha=0.6, label=f"{n:,} people, published (arrows: at most)"
            if any(people == n for people, _ in AT_MOST) else f"{n:,} people, published",
        )  # fmt: skip
    for n, correlation in AT_MOST:
        axes.annotate(
            "", (correlation, 0.6 * COMPRESSIBILITY[n][correlation]),
            (correlation, COMPRESSIBILITY[n][correlation]),
            arrowprops={"arrowstyle": "->", "color": IN_WEIGHT, "alpha": 0.6},
        )  # fmt: skip
    axes.set(yscale="log", xlabel="correlation within families", ylabel="smallest P, parameters")
    for n, shade in zip(numbers, np.linspace(1, 0.35, len(numbers)), strict=True):
        own = [row for row in minima if row["n_people"] == n and row["fixed"] is not None]
        _recall_at_fixed_size(fixed, own, f"{n:,} people", shade)
    fixed.axhline(RECALL, color=CHANCE, lw=1, ls="--")
    fixed.set(xlabel="correlation within families", ylabel="recall with P fixed")
    fixed.set_ylim(-0.03, 1.03)
    for both in (axes, fixed):
        _tidy(both, columns=1)
    save(figure, path)


def _recall_at_fixed_size(axes: Axes, minima: Rows, whose: str, shade: float) -> None:
    """The mean recall of a model that is too small without correlation, lowest to highest seed."""
    if not minima:
        return
    fixed = [row["fixed"] for row in minima]
    mean, low, high = (
        np.array([row[name] for row in fixed])
        for name in ("recall", "recall_lowest", "recall_highest")
    )
    axes.errorbar(
        [row["correlation"] for row in minima], mean, yerr=_bars(mean, low, high), fmt="o-",
        color=IN_WEIGHT, alpha=shade, capsize=3,
        label=f"{whose}, P = {fixed[0]['parameters']:,} (bars: all seeds)",
    )  # fmt: skip


def _minima(axes: Axes, minima: Rows, x: str, what: str, color: str) -> None:
    """Smallest P against x, with bars down to the largest P that fails."""
    found = [row for row in minima if row["parameters"]]
    if not found:
        return
    p = np.array([row["parameters"] for row in found], dtype=float)
    below = p - np.array([row["failed"] or 0 for row in found], dtype=float)
    axes.errorbar(
        [row[x] for row in found], p, yerr=[below, np.zeros_like(p)], fmt="o-", color=color,
        capsize=3, label=f"{what}, here (bars: down to what fails)",
    )  # fmt: skip


def _curve(axes: Axes, rows: Rows, x: str, y: str, **style: Any) -> None:
    """The mean of y over seeds at each x, with a bar from the lowest seed to the highest.

    A point of a single seed, where others have more, is hollow.
    """
    places = sorted({row[x] for row in rows})
    by_place = [np.array([row[y] for row in rows if row[x] == place]) for place in places]
    means = np.array([values.mean() for values in by_place])
    low, high = (np.array([pick(v) for v in by_place]) for pick in (np.min, np.max))
    axes.errorbar(
        places, means, yerr=_bars(means, low, high), fmt="o-", ms=4, lw=1.5, capsize=2, **style
    )
    if max(map(len, by_place)) > 1:
        single = [len(values) == 1 for values in by_place]
        axes.plot(np.array(places)[single], means[single], "o", ms=3, color="white", zorder=3)


def _bars(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """Down to the lowest and up to the highest."""
    # Rounding may take the mean of equal values beyond them, and a bar must not be negative.
    return [(mean - low).clip(0), (high - mean).clip(0)]


def _finish(figure: Figure, axes: Axes, path: Path, columns: int) -> None:
    _tidy(axes, columns)
    save(figure, path)


def _tidy(axes: Axes, columns: int) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False, fontsize=8, ncols=columns, loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )  # fmt: skip
