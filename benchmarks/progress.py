"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 5.0
ROWS_BETWEEN_REPORTS = 1000


class Progress:
    """How far one piece of work has come; use it in a `with` statement.

    label: what is being done. total: how much there is to do.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self._bar: Any = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._bar.add_task(self.label, total=self.total, note="")
        else:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: int, note: str = "", *, always: bool = False) -> None:
        """Tell how much is done; `always` prints a line where there is no bar and it is early."""
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=done, **({"note": note} if note else {}))
        elif always or time.monotonic() >= self._next_line:
            print(f"{self.label} {done:,}/{self.total:,} {note}".rstrip(), file=sys.stderr)
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The items, with progress."""
    with Progress(label, total) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            if done % ROWS_BETWEEN_REPORTS == 0 or done == total:
                progress.at(done)


class TrainingProgress:
    """Progress of training runs, from the rows of their metrics; use it in a `with` statement.

    n_steps: the steps of each run, by its name.
    """

    def __init__(self, n_steps: Mapping[str, int]) -> None:
        self.n_steps = n_steps
        self._run = ""
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, run: str, row: Mapping[str, Any]) -> None:
        """Show one row of the metrics of a run."""
        is_first = self._progress is None or run != self._run
        if is_first or self._progress is None:
            self._close()
            self._run = run
            self._progress = Progress(run, self.n_steps[run]).__enter__()
        evaluated = "recall_seen" in row or "exact" in row
        self._progress.at(row["step"], describe(row), always=evaluated or is_first)
        if evaluated and row["step"] == self.n_steps[run]:
            self._close()  # what follows on stdout must not be drawn into a bar

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None


def describe(row: Mapping[str, Any]) -> str:
    """One row of training metrics in a few words."""
    if "loss" in row:
        return f"loss {row['loss']:.3f}"
    if "exact" in row:
        return f"exact calls {100 * row['exact']:.1f}%"
    recalls = [
        f"recall {100 * row[f'recall_{who}']:.1f}% {who}"
        for who in ("seen", "unseen")
        if f"recall_{who}" in row
    ]
    return ", ".join(recalls)
