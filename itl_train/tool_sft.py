"""Fine-tune a pretrained model to call tools, on samples that are verified.

    itl toolcall sft --model smollm-135m --data tasks --out runs/tools-sft

The training data are the expert's episodes about the samples of a folder; the loss is on the JSON
alone and the mark that ends it. See `itl_train.fine_tune` for what a run is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from itl_agents.agent import Agent
from itl_agents.render import DialogueTokenizer, Rendered
from itl_train.fine_tune import FineTuneRun
from itl_train.settings import lasting
from itl_train.tool_questions import ToolQuestions
from itl_train.tool_sft_config import ToolSFTSettings
from itl_train.trainer_run import OnMetrics

__all__ = ["ToolSFTRun", "ToolSFTSettings", "train_tool_sft"]


@dataclass(frozen=True)
class ToolDialogues:
    """Tool calling as a `Subject` of fine-tuning."""

    data: ToolQuestions
    settings: ToolSFTSettings

    @classmethod
    def open(cls, settings: ToolSFTSettings) -> "ToolDialogues":
        """Read the samples; see `ToolQuestions.open` for what is raised."""
        data = ToolQuestions.open(
            settings.data,
            max_turns=settings.max_turns,
            instruction=settings.instruction,
            database=settings.database,
        )
        return cls(data, settings)

    @property
    def label(self) -> str:
        """See `Subject.label`."""
        return "tools"

    @property
    def calls(self) -> Literal["text"]:
        """See `Subject.calls`: a turn is the JSON that it spells."""
        return "text"

    @property
    def shows_replies(self) -> bool:
        """See `Subject.shows_replies`."""
        return self.settings.max_turns > 1

    @property
    def max_new_tokens(self) -> int:
        """See `Subject.max_new_tokens`."""
        return self.settings.max_new_tokens

    @property
    def max_tokens(self) -> int:
        """See `Subject.max_tokens`."""
        return self.settings.max_tokens

    def rendered(self, tokenizer: DialogueTokenizer) -> Iterator[Rendered]:
        """See `Subject.rendered`."""
        return self.data.rendered(tokenizer, self.settings.max_tokens)

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """See `Subject.ask`."""
        return self.data.ask(agent, n)


class ToolSFTRun(FineTuneRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    settings: ToolSFTSettings

    def __init__(self, settings: ToolSFTSettings, out: Path) -> None:
        """Open or begin the run; nothing is written if the samples, model or settings are unfit.

        Raises ConfigError if the folder holds a run of other settings.
        """
        super().__init__(settings, ToolDialogues.open(settings), lasting(settings), out)


def train_tool_sft(
    settings: ToolSFTSettings, out: str | Path, on_metrics: OnMetrics | None = None
) -> dict[str, Any]:
    """Fine-tune (or go on fine-tuning) the run in `out`; returns its last evaluation.

    See `ToolSFTRun` for what is raised.
    """
    return ToolSFTRun(settings, Path(out)).train(on_metrics)
