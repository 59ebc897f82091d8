"""The figures; every one is drawn from a result file and saved by file name."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from itl_env.files import whole_file

IN_TOOL, IN_WEIGHT, CHANCE, CIRCUIT = "#1b7f79", "#c8553d", "#888888", "#5b6abf"
_COLOURS = {"in-tool": IN_TOOL, "in-weight": IN_WEIGHT, "circuit": CIRCUIT}


def save(figure: Figure, path: Path) -> None:
    """Save a PNG so that it is seen whole or not at all."""
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150, bbox_inches="tight")


def quickstart_figure(
    results: dict[str, Any], curves: dict[str, list[dict[str, Any]]], path: Path
) -> None:
    """Recall of both models on people they know and people they do not; and how they learned."""
    figure = Figure(figsize=(9.6, 3.6))
    bars, learning = figure.subplots(1, 2, width_ratios=(1.4, 1))
    _recall_bars(bars, results)
    _learning_curves(learning, results, curves)
    figure.tight_layout(w_pad=2.5)
    save(figure, path)


def _recall_bars(axes: Axes, results: dict[str, Any]) -> None:
    rows = {(row["agent"], row["asked_about"]): row for row in results["rows"]}
    guess = rows.pop(("guessing", "never seen"))
    n_trained = {
        "in-tool": results["config"]["n_people"] - results["config"]["n_unseen"],
        "in-weight": results["config"]["n_memorised"],
    }
    ticks = []
    for place, ((agent, about), row) in enumerate(rows.items()):
        recall = 100 * row["recall"]
        below, above = recall - 100 * row["recall_low"], 100 * row["recall_high"] - recall
        axes.bar(
            place,
            recall,
            yerr=[[below], [above]],
            capsize=4,
            width=0.62,
            color=_COLOURS[agent],
            alpha=1.0 if about == "never seen" else 0.55,
            error_kw={"lw": 1.2},
        )
        axes.annotate(
            f"{recall:.1f}%",
            (place, max(recall + above, 100 * guess["recall"])),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        n = n_trained[agent] if about == "trained on" else results["config"]["n_unseen"]
        name = "built by hand" if agent == "circuit" else agent
        ticks.append(f"{name}\n{n:,} people\n{about}")
    axes.axhline(100 * guess["recall"], color=CHANCE, lw=1, ls="--", zorder=0)
    axes.annotate(
        "guessing",
        (1, 100 * guess["recall"]),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=CHANCE,
    )
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("exact recall (%)")
    axes.set_title("in-tool looks it up, in-weight knows it", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _learning_curves(
    axes: Axes, results: dict[str, Any], curves: dict[str, list[dict[str, Any]]]
) -> None:
    for name, rows in curves.items():
        points = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        label = f"{name}, {results['parameters'][name]:,} parameters"
        axes.plot(*zip(*points, strict=True), color=_COLOURS[name], lw=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats/token)")
    axes.set_title("training", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
