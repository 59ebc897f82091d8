"""Train a NanoLlama from scratch to call tools.

    itl toolcall train --data tasks --out runs/tools

The training data are the expert's episodes about the samples of a folder, in the very task that
evaluates the model; see `itl_train.nano_run` for what a run is.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from itl_agents.agent import Agent
from itl_agents.nanollama import ByteTokenizer, NanoTokenizer, open_tokenizer
from itl_env.errors import ConfigError
from itl_train.batches import BatchPlan, Dialogues
from itl_train.nano_run import NanoRun
from itl_train.settings import lasting
from itl_train.team import check_device
from itl_train.tool_config import ToolConfig
from itl_train.tool_questions import ToolQuestions
from itl_train.watch_config import UNWATCHED, WatchConfig


@dataclass(frozen=True)
class ToolSubject:
    """Tool calling as a `Subject` of a run."""

    config: ToolConfig

    @cached_property
    def data(self) -> ToolQuestions:
        """The samples."""
        config = self.config
        return ToolQuestions.open(
            config.data,
            max_turns=config.max_turns,
            instruction=config.instruction,
            database=config.database,
        )

    @property
    def label(self) -> str:
        """See `Subject.label`."""
        return "tools"

    @property
    def place(self) -> str:
        """See `Subject.place`."""
        return str(self.data.folder)

    @property
    def max_new_tokens(self) -> int:
        """See `Subject.max_new_tokens`."""
        return self.config.max_new_tokens

    def tokenizer(self) -> NanoTokenizer:
        """See `Subject.tokenizer`."""
        name = self.config.tokenizer
        return ByteTokenizer() if name == "bytes" else open_tokenizer(name)

    def plan(self, tokenizer: NanoTokenizer, share: tuple[int, int], device: str) -> BatchPlan:
        """See `Subject.plan`. Raises ConfigError for a dialogue longer than the model."""
        config = self.config
        dialogues = Dialogues.of(self.data.rendered(tokenizer))
        longest = int(dialogues.lengths.max())
        if longest > config.max_length:
            raise ConfigError(
                f"max_length is {config.max_length}, shorter than the longest dialogue of "
                f"{longest} tokens in {self.place}; raise it."
            )
        return BatchPlan(
            dialogues.to(device), config.batch_size, config.seed, config.pad_to, share=share
        )

    def exposures(self, plan: BatchPlan, step: int) -> float:
        """See `Subject.exposures`."""
        return plan.epochs(step)[0]

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """See `Subject.ask`."""
        return self.data.ask(agent, n)


class ToolRun(NanoRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    config: ToolConfig

    def __init__(self, config: ToolConfig, out: Path, watch: WatchConfig = UNWATCHED) -> None:
        """Open or begin the run; nothing is written if the samples or config are unfit.

        Raises ConfigError if the folder holds a run of another configuration.
        """
        check_device(config.device)
        subject = ToolSubject(config)
        _ = subject.data
        super().__init__(config, subject, lasting(config), out, watch)
