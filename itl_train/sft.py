"""Fine-tune a pretrained model on the expert's episodes: to know facts, or to look them up.

    itl train sft --model smollm-135m --database sqlite:///facts.db --mode in-tool --out runs/sft

See `itl_train.fine_tune` for what a run is.
"""

from pathlib import Path
from typing import Any

from itl_train.fine_tune import FineTuneRun
from itl_train.settings import lasting
from itl_train.sft_config import SFTSettings
from itl_train.sft_questions import Questions
from itl_train.trainer_run import OnMetrics

__all__ = ["SFTRun", "SFTSettings", "train_sft"]


class SFTRun(FineTuneRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    settings: SFTSettings

    def __init__(self, settings: SFTSettings, out: Path) -> None:
        """Open or begin the run; nothing is written if the database, model or settings are unfit.

        Raises ConfigError if the folder holds a run of other settings.
        """
        self.questions = Questions.open(settings)
        super().__init__(settings, self.questions, lasting(settings), out)


def train_sft(
    settings: SFTSettings, out: str | Path, on_metrics: OnMetrics | None = None
) -> dict[str, Any]:
    """Fine-tune (or go on fine-tuning) the run in `out`; returns its last evaluation.

    See `SFTRun` for what is raised.
    """
    return SFTRun(settings, Path(out)).train(on_metrics)
