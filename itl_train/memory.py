"""Train a NanoLlama to know facts (in-weight) or to look them up (in-tool).

    itl train memory --database sqlite:///facts.db --mode in-tool --out runs/in-tool

The training data are the expert's episodes in the very task that evaluates the model; see
`itl_train.nano_run` for what a run is.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itl_agents.agent import Agent
from itl_agents.evaluate import facts_to_ask, recall_row
from itl_agents.nanollama import ByteTokenizer, NanoTokenizer, open_tokenizer
from itl_env.connection import lasting_url
from itl_env.database import FactDatabase
from itl_env.recall import Mode, RecallTask
from itl_train.batches import BatchPlan
from itl_train.memory_config import MemoryConfig
from itl_train.nano_run import NanoRun, OnMetrics
from itl_train.people import seen_and_unseen
from itl_train.sources import exposures, open_plan, used_bytes
from itl_train.team import check_device
from itl_train.watch_config import UNWATCHED, WatchConfig

__all__ = [
    "MemoryConfig",
    "MemoryRun",
    "Tasks",
    "WatchConfig",
    "train_memory",
]


@dataclass(frozen=True)
class Tasks:
    """The two tasks of a run: the people it trains on, and others of the same database."""

    seen: RecallTask
    unseen: RecallTask | None
    config: MemoryConfig

    @classmethod
    def open(cls, config: MemoryConfig) -> "Tasks":
        """Open the database; raises ConfigError if it holds too few people."""
        database = FactDatabase(config.database, table=config.table, key=config.key)
        seen, unseen = seen_and_unseen(database, config.n_people, config.n_unseen)
        others = config.task(database, unseen) if config.n_unseen else None
        return cls(config.task(database, seen), others, config)

    def tokenizer(self) -> NanoTokenizer:
        """The one that the settings name; see `open_tokenizer` for what is raised."""
        name = self.config.tokenizer
        if name == "used-bytes":
            tasks = [self.seen, *([self.unseen] if self.unseen else [])]
            return ByteTokenizer(b"".join(used_bytes(task) for task in tasks))
        return ByteTokenizer() if name == "bytes" else open_tokenizer(name)

    @property
    def label(self) -> str:
        """See `Subject.label`."""
        return self.config.mode

    @property
    def place(self) -> str:
        """See `Subject.place`."""
        return self.seen.database.place

    @property
    def max_new_tokens(self) -> int:
        """See `Subject.max_new_tokens`."""
        return 160

    def plan(self, tokenizer: NanoTokenizer, share: tuple[int, int], device: str) -> BatchPlan:
        """See `Subject.plan`; what is raised, see `open_plan`."""
        return open_plan(self.config, self.seen_in, tokenizer, share, device)

    def exposures(self, plan: BatchPlan, step: int) -> float:
        """How often each fact has been seen, in all that speaks of people."""
        return exposures(self.config, plan, step)

    def seen_in(self, mode: Mode) -> RecallTask:
        """The task about the people to train on, in a mode."""
        keys = slice(0, self.config.n_people)
        return dataclasses.replace(self.config, mode=mode).task(self.seen.database, keys)

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """Recall on training people and on unseen ones, for a metrics row; see `facts_to_ask`."""
        tasks = {"seen": self.seen, "unseen": self.unseen}
        return recall_row(
            agent, {name: (task, facts_to_ask(task, n)) for name, task in tasks.items() if task}
        )


def recorded(config: MemoryConfig) -> dict[str, Any]:
    """The settings as they may be written down: the database's address without a password."""
    return {**dataclasses.asdict(config), "database": lasting_url(config.database)}


class MemoryRun(NanoRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    config: MemoryConfig

    def __init__(self, config: MemoryConfig, out: Path, watch: WatchConfig = UNWATCHED) -> None:
        """Open or begin the run; nothing is written if the database or config is unfit.

        watch: how it is watched, which may change from one invocation to the next.

        Raises ConfigError if the folder holds a run of another configuration.
        """
        check_device(config.device)
        self.tasks = Tasks.open(config)
        super().__init__(config, self.tasks, recorded(config), out, watch)


def train_memory(
    config: MemoryConfig,
    out: str | Path,
    on_metrics: OnMetrics | None = None,
    watch: WatchConfig = UNWATCHED,
) -> dict[str, Any]:
    """Train (or go on training) the run in `out`; returns its last evaluation.

    See `MemoryRun` for what is raised.
    """
    return MemoryRun(config, Path(out), watch).train(on_metrics)
