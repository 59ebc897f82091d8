"""What every Gymnasium environment of one episode at a time is here: a thin shell over a task."""

from typing import Any, Self

import gymnasium

from itl_env.gym_shared import METADATA, check_render_mode, dialogue_text, warn_no_render
from itl_env.task import Reply


class SingleEnv(gymnasium.Env[str, Any]):
    """A shell over a task, which it closes only if it made the task itself.

    A subclass makes its task in `__init__` and calls `_wrap`, which also sets the spaces.
    """

    metadata = METADATA

    task: Any
    reply: Reply[Any] | None
    """The last reply, with the episode's state; None before the first reset."""

    @classmethod
    def from_task(cls, task: Any, render_mode: str | None = None) -> Self:
        """The environment of a task that exists already, which `close` leaves open."""
        check_render_mode(render_mode)
        self = cls.__new__(cls)
        self._wrap(task, render_mode, owned=False)
        return self

    def _wrap(self, task: Any, render_mode: str | None, owned: bool) -> None:
        self.task, self.render_mode, self._owned = task, render_mode, owned
        self.reply = None

    def render(self) -> str | None:
        """The dialogue so far, one line a message, where `render_mode` is "ansi"."""
        if self.render_mode is None:
            warn_no_render()
            return None
        return dialogue_text(self.reply)

    def close(self) -> None:
        """Close what the task holds open, unless the task was given."""
        if self._owned:
            self.task.close()
