"""How a sweep stands, shown while it runs."""

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from itl_train.sweep import State


def describe(states: Mapping[str, State]) -> str:
    """How many runs are in each state."""
    counts = Counter(states.values())
    order: tuple[State, ...] = ("done", "running", "waiting", "failed")
    return ", ".join(f"{counts[its]:,} {its}" for its in order)


class Board:
    """How a sweep stands: a live line on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        self._said = ""
        self._live: Any = None

    def __enter__(self) -> "Board":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True))
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, states: Mapping[str, State]) -> None:
        """Show the states, and the names of what is running."""
        running = [name for name, its in states.items() if its == "running"]
        line = describe(states)
        if self._live is not None:
            self._live.update("\n".join([line, *(f"  {name}" for name in running[:10])]))
        elif line != self._said:
            print(line, file=sys.stderr, flush=True)
        self._said = line
