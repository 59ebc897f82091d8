"""How a sweep stands, shown while it runs."""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchmarks.progress import describe as describe_row
from itl_train.memory_sweep import n_runs
from itl_train.run_folder import RunFolder
from itl_train.sweep import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN = 20  # running runs in the table


def describe(states: Mapping[str, State]) -> str:
    """How many runs are in each state."""
    counts: Counter[State] = Counter()
    for name, its in states.items():
        counts[its] += n_runs(name)
    order: tuple[State, ...] = ("done", "running", "waiting", "failed")
    return ", ".join(f"{counts[its]:,} {its}" for its in order)


def newest_metrics(folder: Path) -> str:
    """How far a run has come, from the newest line of its metrics."""
    rows = RunFolder(folder).rows()
    return f"step {rows[-1]['step']:,}, {describe_row(rows[-1])}" if rows else "it has begun"


def _own_stderr() -> TextIO:
    """Standard error by another descriptor, for jobs that are started turn the usual one aside."""
    return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)


class Board:
    """How a sweep stands: a live table on a terminal, a line for each change elsewhere.

    out: the folder of the sweep. console: the terminal; standard error if that is one.
    """

    def __init__(self, out: Path, console: "Console | None" = None) -> None:
        self._out = out
        self._console = console
        self._said = ""
        self._states: Mapping[str, State] = {}
        self._live: Any = None

    def __enter__(self) -> "Board":
        if self._console is not None or sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=self._console or Console(file=_own_stderr()),
                get_renderable=self.table,
                refresh_per_second=0.5,
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, states: Mapping[str, State]) -> None:
        """Show the states."""
        self._states = dict(states)
        line = describe(states)
        if self._live is not None:
            self._live.refresh()
        elif line != self._said:
            print(line, file=sys.stderr, flush=True)
        self._said = line

    def table(self) -> "Table":
        """The runs at work, with their newest metrics, and how many are in each state."""
        from rich import box
        from rich.table import Table

        shown = Table("run", "metrics", box=box.SIMPLE)
        running = [name for name, its in self._states.items() if its == "running"]
        for name in running[:SHOWN]:
            shown.add_row(name, newest_metrics(self._out / name))
        if len(running) > SHOWN:
            shown.add_row(f"and {len(running) - SHOWN:,} more", "")
        shown.add_row(describe(self._states), "")
        return shown
