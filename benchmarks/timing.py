"""Fair timing: the sides of a comparison take turns, so that what slows the machine slows all."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from itl_env.errors import ConfigError

Rates = dict[str, list[float]]
"""Things per second of each side, one figure for each round."""


def say(line: str) -> None:
    """A line of progress on stderr, which leaves stdout to the result."""
    print(line, file=sys.stderr, flush=True)


def check_threads(n: int) -> None:
    """Raise ConfigError for a number of CPU threads that is negative."""
    if n < 0:
        raise ConfigError(f"n_threads is {n}; it must not be negative.")


def race(sides: Mapping[str, Callable[[], int]], rounds: int) -> Rates:
    """Time every side once a round, after one round that is not counted.

    sides: by name, a function that does some work and returns how many things it did; sides may do
        different numbers of them.
    """
    rates: Rates = {name: [] for name in sides}
    for turn in range(rounds + 1):
        # Every other round runs backwards, so that no side always follows the same one.
        order = list(sides) if turn % 2 else list(sides)[::-1]
        gc.collect()  # nobody pays for what lay around before
        for name in order:
            began = time.perf_counter()
            done = sides[name]()
            seconds = time.perf_counter() - began
            if turn:
                rates[name].append(done / seconds)
        say(f"  round {turn} of {rounds}")
    return rates


def spread(values: list[float], key: str) -> dict[str, float]:
    """Median, lowest and highest under `key`, `key`_low and `key`_high."""
    return {
        key: statistics.median(values),
        f"{key}_low": min(values),
        f"{key}_high": max(values),
    }


def compare(
    rates: Rates,
    what: str,
    against: str,
    unit: str,
    *,
    equal: bool | None,
    checked: str,
    target: float | None = None,
) -> dict[str, Any]:
    """One line of a table: the rates of two sides, and their ratio within each round.

    equal: whether both sides were shown to produce the same, None if they do not; `checked` says
        what was compared.
    target: what the ratio is meant to be at least, if anything was set.
    """
    ratios = [a / b for a, b in zip(rates[what], rates[against], strict=True)]
    return {
        "what": what,
        "against": against,
        "unit": unit,
        **spread(ratios, "ratio"),
        **spread(rates[what], "per_s"),
        **spread(rates[against], "against_per_s"),
        "equal": equal,
        "checked": checked,
        "target": target,
    }


def absolute(what: str, unit: str, values: list[float], target: str = "") -> dict[str, Any]:
    """One line of a table without a ratio; `target` is what the figure is meant to be."""
    return {"what": what, "unit": unit, **spread(values, "value"), "target": target}


def with_spread(row: Mapping[str, Any], key: str) -> str:
    """What `spread` found under `key`, for people to read: "3.1 [2.9, 3.2]"."""
    median, low, high = (_figure(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    return f"{median} [{low}, {high}]"


def comparisons_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare` as a Markdown table."""
    lines = "\n".join(
        f"| {row['what']} | {row['against']} | **{with_spread(row, 'ratio')}** | {_target(row)} | "
        f"{with_spread(row, 'per_s')} | {with_spread(row, 'against_per_s')} {row['unit']} | "
        f"{_equality(row)} |"
        for row in rows
    )
    return f"""\
| library | instead | ratio | target | library | instead | shown to be equal |
|---|---|---:|---:|---:|---:|---|
{lines}"""


def absolutes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `absolute` as a Markdown table."""
    lines = "\n".join(
        f"| {row['what']} | {with_spread(row, 'value')} {row['unit']} | {row['target']} |"
        for row in rows
    )
    return f"""\
| alone | median [lowest, highest] | target |
|---|---:|---|
{lines}"""


def _target(row: Mapping[str, Any]) -> str:
    return "-" if row["target"] is None else f"{row['target']:g}"


def _equality(row: Mapping[str, Any]) -> str:
    if not row["checked"]:
        return "-"
    return f"{'same' if row['equal'] else 'NOT the same'}: {row['checked']}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
