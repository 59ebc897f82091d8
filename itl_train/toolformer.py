"""Fine-tune a pretrained model to write calculator calls as text, and to copy other sentences.

    itl toolformer train --model smollm-135m --data rows --out runs/toolformer

The loss is on the target and the token that ends it, for every row; see `itl_train.toolformer_text`
for what a row is, and `itl_train.fine_tune` for what a run is. Training ends early when the share
of exact calls has not become better for `patience` evaluations. The last checkpoint is what counts
then: weights of earlier evaluations are not gone back to.
"""

import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from itl_agents.pretrained import Pretrained, load_pretrained
from itl_agents.render import Rendered
from itl_env.errors import ConfigError, ITLError
from itl_env.toolformer import TRAIN, VALIDATION, ToolformerRow, called, toolformer_rows_in
from itl_train.fine_tune import SupervisedRun
from itl_train.models import model_of
from itl_train.settings import lasting
from itl_train.toolformer_config import ToolformerSettings
from itl_train.toolformer_text import format_example, score_targets, written_after
from itl_train.trainer_run import OnMetrics, without_dropout

__all__ = ["ToolformerRun", "ToolformerSettings", "merge", "train_toolformer"]


class ToolformerRun(SupervisedRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`.

    If it ends early, its last checkpoint is what counts.
    """

    settings: ToolformerSettings

    def __init__(self, settings: ToolformerSettings, out: Path) -> None:
        """Open or begin the run; nothing is written if the rows, model or settings are unfit.

        Raises ConfigError if the folder holds a run of other settings.
        """
        self.rows = toolformer_rows_in(settings.data, TRAIN)
        validation = toolformer_rows_in(settings.data, VALIDATION)
        self.asked = [
            row
            for kind in ("tool", "copy")
            for row in [each for each in validation if each.kind == kind][: settings.n_evaluate]
        ]
        if not any(row.kind == "tool" for row in self.asked):
            raise ConfigError(f"{VALIDATION} in {settings.data} holds no row of the kind 'tool'.")
        super().__init__(settings, lasting(settings), out)
        self.evaluations = [row for row in self.folder.rows() if "exact" in row]
        self.last_evaluation = self.evaluations[-1] if self.evaluations else None

    def rendered(self, pretrained: Pretrained) -> Iterable[Rendered]:
        """See `SupervisedRun.rendered`."""
        return self._rendered(self.rows, pretrained.tokenizer)

    @staticmethod
    def _rendered(rows: Iterable[ToolformerRow], tokenizer: Any) -> list[Rendered]:
        return [format_example(row.prompt, row.target, tokenizer) for row in rows]

    @property
    def n_steps(self) -> int:
        """See `TrainerRun`."""
        return self.settings.steps(len(self.rows))

    def is_enough(self) -> bool:
        """Whether exact calls have not become more for `patience` evaluations."""
        return self.settings.out_of_patience([row["exact"] for row in self.evaluations])

    def evaluate(self, step: int) -> dict[str, Any]:
        """What becomes of validation rows: the same ones every time.

        exact: share of tool rows after whose prompt the target is written, and nothing else.
        copy_exact: share of sentences that are repeated, and no call is made.
        validation_loss: nats a token of the targets of a row, on average over rows.
        """
        row: dict[str, Any] = {"step": step}
        if self.team.first:
            with without_dropout(self.trainer.model):
                row |= self._measured()
        row["exact"] = self.team.tell(row.get("exact", 0.0))
        self.evaluations.append(row)
        self.last_evaluation = row
        return row

    def _measured(self) -> dict[str, Any]:
        rendered = self._rendered(self.asked, self.tokenizer)
        scores = score_targets(self.bare, rendered)
        prompts = [row.prompt for row in self.asked]
        texts = written_after(self.bare, self.tokenizer, prompts, rendered, scores)
        row, losses = shares(self.asked, texts), [score.loss for score in scores]
        return {**row, "validation_loss": sum(losses) / len(losses)}


def shares(rows: Sequence[ToolformerRow], texts: Sequence[str]) -> dict[str, Any]:
    """How many rows have become their target, for a metrics row; of copies only if there are any.

    texts: what was written after each row's prompt.
    """
    found: dict[str, Any] = {}
    for kind, name in (("tool", "exact"), ("copy", "copy_exact")):
        right = [
            text.strip() == row.target and called(text) == (kind == "tool")
            for row, text in zip(rows, texts, strict=True)
            if row.kind == kind
        ]
        if right:
            found |= {
                name: sum(right) / len(right),
                f"asked_{kind}": len(right),
                f"right_{kind}": sum(right),
            }
    return found


def train_toolformer(
    settings: ToolformerSettings, out: str | Path, on_metrics: OnMetrics | None = None
) -> dict[str, Any]:
    """Fine-tune (or go on fine-tuning) the run in `out`; returns its last evaluation.

    See `ToolformerRun` for what is raised.
    """
    return ToolformerRun(settings, Path(out)).train(on_metrics)


def merge(source: str | Path, out: str | Path) -> Path:
    """Write a run, or a checkpoint, as a model that needs no adapter; returns its folder.

    The weights are float32. The folder appears under its name only when it is whole.

    Raises ConfigError if there is something at `out` already, or nothing to merge at `source`, and
    ITLError if it cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder.")
    model, tokenizer, _ = load_pretrained(model_of(source))
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(out)
    except OSError as error:
        raise ITLError(f"Cannot write the model {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out
