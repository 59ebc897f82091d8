"""Signals to stop that wait for a good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name)
    # Ctrl-C; what `kill` and schedulers send; what schedulers send some time before the end.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back the signals to stop; the yielded function says whether one has come.

    Stopping between two optimizers would leave half a step in the weights, so a loop asks after
    each step, saves, and leaves the block, where every signal that came then has the effect that it
    would have had: KeyboardInterrupt for Ctrl-C, the end of the process, or a scheduler's handler.
    That effect may be none: Slurm preempts with SIGTERM, which submitit passes over, so the loop
    must go on if the block is left and nothing was raised. A second signal of the same kind is not
    held back. Outside the main thread, which alone can handle signals, nothing is changed.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    for number in SIGNALS:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
