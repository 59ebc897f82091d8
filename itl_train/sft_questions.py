"""What a run that fine-tunes on facts trains on and is asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from itl_agents.agent import Agent, rollout
from itl_agents.evaluate import recall_row
from itl_agents.render import DialogueTokenizer, Rendered, render
from itl_agents.scripted import ExpertAgent
from itl_env import streams
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.recall import RecallTask
from itl_train.sft_config import SFTSettings


@dataclass(frozen=True)
class Questions:
    """A `Subject` of fine-tuning: the first facts of a database, and the next ones."""

    seen: RecallTask
    unseen: RecallTask | None
    settings: SFTSettings

    @classmethod
    def open(cls, settings: SFTSettings) -> "Questions":
        """Open the database; raises ConfigError if it holds too few facts, or parts of people."""
        database = settings.open_database()
        n_attributes = len(settings.task(database, slice(0, 1)).attributes)
        for name in ("n_facts", "n_unseen"):
            if getattr(settings, name) % n_attributes:
                raise ConfigError(
                    f"{name} is {getattr(settings, name)}, which is no whole number of people with "
                    f"{n_attributes} facts each."
                )
        n_seen, n_unseen = settings.n_facts // n_attributes, settings.n_unseen // n_attributes
        if len(database) < n_seen + n_unseen:
            raise ConfigError(
                f"{database.place} holds {len(database) * n_attributes:,} facts, fewer than "
                f"{settings.n_facts:,} to train on (n_facts) and {settings.n_unseen:,} others "
                "(n_unseen); lower one of them."
            )
        seen = settings.task(database, slice(0, n_seen))
        unseen = settings.task(database, slice(n_seen, n_seen + n_unseen)) if n_unseen else None
        return cls(seen, unseen, settings)

    @property
    def label(self) -> str:
        """See `Subject.label`."""
        return self.settings.mode

    @property
    def calls(self) -> Literal["text", "native"]:
        """See `Subject.calls`."""
        return self.settings.calls

    @property
    def shows_replies(self) -> bool:
        """See `Subject.shows_replies`."""
        return self.settings.mode == "in-tool"

    @property
    def max_new_tokens(self) -> int:
        """See `Subject.max_new_tokens`."""
        return 64

    @property
    def max_tokens(self) -> int:
        """See `Subject.max_tokens`: nothing is ever cut."""
        return 0

    def rendered(self, tokenizer: DialogueTokenizer) -> Iterator[Rendered]:
        """The expert's episodes about the facts to train on."""
        played = rollout(ExpertAgent(self.seen), self.seen, self.seen.facts(), lanes=1024)
        return (render(episode, tokenizer) for episode in played)

    def asked(self, task: RecallTask, n: int) -> list[Fact]:
        """At most n facts of a task, of all attributes and people alike; the same every time."""
        places = np.arange(min(n, task.n_facts), dtype=np.uint64)
        chosen = streams.permute(places, task.n_facts, streams.key(0, "asked"))
        return task.facts_at(sorted(chosen.tolist()))

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """Recall on facts trained on and on others, for a metrics row."""
        tasks = {"seen": self.seen, "unseen": self.unseen}
        return recall_row(
            agent, {name: (task, self.asked(task, n)) for name, task in tasks.items() if task}
        )
