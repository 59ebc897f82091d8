"""What the reports of the studies share: tables, fits, and the files at the end."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.statistics import interval
from itl_env.errors import ITLError
from itl_env.files import write_text
from itl_train.sweep import Row

if TYPE_CHECKING:
    from benchmarks.studies import Study


RULED_OUT = (
    "Where the first seed rules out that a width's mean is enough, its other seeds were not run: "
    "the largest P that fails may rest on one seed."
)


def results_folder(out: Path) -> Path:
    """The folder, made if it is not there; raises ITLError if that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ITLError(f"Cannot write to {out}: {error.strerror}.") from None
    if not os.access(out, os.W_OK):  # which would only be found when all is measured
        raise ITLError(f"Cannot write to {out}: you lack the permission.")
    return out


def publish(
    out: Path, name: str, results: Mapping[str, Any], text: str, show: Callable[[str], None]
) -> None:
    """Write `<name>.json` and `<name>.md`, and show the second."""
    write_text(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
    write_text(out / f"{name}.md", text)
    show(text)


def number(value: float | None, otherwise: str = "-") -> str:
    """A whole number for people to read."""
    return otherwise if value is None else f"{value:,.0f}"


def recall_spread(row: Mapping[str, Any]) -> str:
    """The recall of `minimum`, with the lowest and the highest seed."""
    if row["recall"] is None:
        return "-"
    return interval(row["recall"], row["recall_lowest"], row["recall_highest"])


def minimum(rows: Iterable[Row], group: Mapping[str, Any], width: int | None) -> dict[str, Any]:
    """What a search has found for a group of rows: its smallest size, or None for none.

    rows: of the study. group: the columns that tell the group from others.

    `failed` is the largest size below that was shown not to do. `parameters` are the most that a
    seed has, for worlds may differ in their tokens; `exposures` and `steps` the most that one of
    the smallest size took, or of all if none does.
    """
    own = [row for row in rows if all(row[name] == value for name, value in group.items())]
    chosen = [row for row in own if row["d_model"] == width]
    below = [row["parameters"] for row in own if width is None or row["d_model"] < width]
    recalls = [row["seen_recall"] for row in chosen]
    return {
        **group,
        "d_model": width,
        "parameters": max((row["parameters"] for row in chosen), default=None),
        "failed": max(below, default=None),
        "recall": _mean(recalls) if recalls else None,
        "recall_lowest": min(recalls, default=None),
        "recall_highest": max(recalls, default=None),
        "exposures": max(row["exposures"] for row in chosen or own),
        "steps": max(row["steps"] for row in chosen or own),
        "bits_per_parameter": _mean([r["bits_per_parameter"] for r in chosen])
        if chosen and "bits_per_parameter" in chosen[0]
        else None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text and whose others are numbers."""
    marks = ["---" if place < left else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *rows))


def remarks(notes: Mapping[Any, str]) -> str:
    """A list of what is to be known of some rows of a table; those without a note are left out."""
    lines = [f"- {name}: {note}\n" for name, note in notes.items() if note]
    return "\n" + "".join(lines) if lines else ""


def line_fit(points: Sequence[tuple[float, float | None]]) -> dict[str, float] | None:
    """Least squares through (x, y), points without y left out; None for fewer than three."""
    kept = [(x, y) for x, y in points if y is not None]
    if len(kept) < 3:
        return None
    x, y = np.array(kept, dtype=float).T
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    total = ((y - y.mean()) ** 2).sum()
    r2 = 1 - float(rest @ rest) / float(total) if total else 1.0
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2}


def _duration(seconds: float) -> str:
    """How long processes worked, added up."""
    hours = seconds / 3600
    return f"{hours:.1f} process hours" if hours >= 1 else f"{seconds / 60:.0f} process minutes"


def finish(
    study: "Study[Any]",
    result: Mapping[str, Any],
    report: str,
    say: Callable[[str], None],
    *,
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `study.json` and `report.md`, print the report, and return what the first holds.

    model: settings of models; those that not all runs share are left out.
    """
    config = study.config
    rows = study.rows.values()
    timed_rows = [row for row in rows if "seconds" in row]
    timed = [row["seconds"] for row in timed_rows]
    others = f" (without {len(rows) - len(timed)} of them)" if len(timed) < len(rows) else ""
    # A row leaves out what is None.
    shared = {key: v for key, v in model.items() if all(row.get(key) == v for row in rows)}
    whole = {
        "study": study.name,
        "preset": config.preset,
        "flags": config.flags,
        "model": shared,
        "runs": len(rows),
        "process_seconds": round(sum(timed), 1),
        "machine": machine(),
        **result,
    }
    on = whole["machine"]
    processors = sorted({row.get("cpu", "processors that were not recorded") for row in timed_rows})
    settings = ", ".join(f"{name} {value}" for name, value in whole["model"].items())
    where = " and ".join(processors) or "no processor"
    runs = f"{whole['runs']:,} run{'s' * (whole['runs'] != 1)}"
    text = (
        f"{report}\n{runs} in {_duration(sum(timed))}{others} on {where}. All "
        f"models: {settings}. The report was made on: {on['cpu']}, {on['cores']} cores, torch "
        f"{on['torch']}.\n\n"
        f"`itl bench run {study.name} {config.flags}`\n"
    )
    write_text(config.out / "study.json", json.dumps(whole, indent=1) + "\n")
    write_text(config.out / "report.md", text)
    say(text)
    if n := study.n_shipped:
        say(
            f"{n} of the {len(rows):,} runs came with the library, measured elsewhere; --fresh "
            "runs them here."
        )
    return whole
