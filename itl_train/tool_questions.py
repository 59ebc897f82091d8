"""What a run that learns tool calling trains on and is asked: samples in a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itl_agents.agent import Agent, rollout
from itl_agents.render import DialogueTokenizer, Rendered, render
from itl_agents.tool_metrics import measure_tool_calls, tool_row
from itl_agents.tool_scripted import ToolExpert
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError
from itl_env.samples import Sample, load_samples
from itl_env.tool_call import ToolCallTask
from itl_env.tool_data import TRAIN, VALIDATION
from itl_env.tools import standard_tools


@dataclass(frozen=True)
class ToolQuestions:
    """Two tasks: the samples to train on, and others.

    folder: as `itl toolcall data` writes it.
    """

    folder: Path
    seen: ToolCallTask
    unseen: ToolCallTask

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        max_turns: int,
        instruction: str,
        rubric: str = "outcome",
        database: str = "",
    ) -> "ToolQuestions":
        """Read the samples; see `ToolCallTask` for the rest.

        database: that the tool `find` looks into; without one, there is no such tool.

        Raises ConfigError for a folder without samples, or samples that do not fit.
        """
        folder = Path(folder)
        for name in (TRAIN, VALIDATION):
            if not (folder / name).is_file():
                raise ConfigError(f"There is no {name} in {folder}; `itl toolcall data` makes one.")
        tools = standard_tools(FactDatabase(database) if database else None)

        def task(name: str) -> ToolCallTask:
            return ToolCallTask(
                load_samples(folder / name),
                tools=tools,
                max_turns=max_turns,
                instruction=instruction,
                rubric=rubric,
            )

        return cls(folder, task(TRAIN), task(VALIDATION))

    def rendered(self, tokenizer: DialogueTokenizer, max_tokens: int = 0) -> Iterator[Rendered]:
        """The expert's episodes about every sample to train on; see `render` for `max_tokens`.

        Raises ConfigError for samples that cannot be told apart, or do not fit.
        """
        played = rollout(ToolExpert(self.seen), self.seen, self.seen.samples, lanes=1024)
        return (render(episode, tokenizer, max_tokens) for episode in played)

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """What came of at most n samples of either part, for a metrics row."""
        row: dict[str, Any] = {}
        for who, task in (("seen", self.seen), ("unseen", self.unseen)):
            row |= tool_row(measure_tool_calls(agent, task, asked(task.samples, n)), who)
        return row


def asked(samples: Sequence[Sample], n: int) -> list[Sample]:
    """At most n samples, always the same ones."""
    places = np.arange(min(n, len(samples)), dtype=np.uint64)
    chosen = streams.permute(places, len(samples), streams.key(0, "asked"))
    return [samples[place] for place in sorted(chosen.tolist())]
