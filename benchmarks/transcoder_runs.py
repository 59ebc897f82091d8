"""What the commands and the studies of transcoders share: collecting and training with progress."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.progress import Progress
from itl_agents.pretrained import Pretrained
from itl_agents.sites import site_of
from itl_env.toolformer import TRAIN, VALIDATION, toolformer_rows_in
from itl_train.activations import COLLECTION, Activations, collect
from itl_train.runs import claim
from itl_train.toolformer_text import bos_ids, format_example
from itl_train.transcoder import TranscoderRun

PARTS = {"train": TRAIN, "validation": VALIDATION}
"""Collections, and the files whose rows they are of."""


def collect_parts(
    pretrained: Pretrained,
    data: Path,
    layers: Sequence[int],
    out: Path,
    *,
    n_rows: int = 0,
    name: str = "",
    **settings: Any,
) -> list[Activations]:
    """Collect, for training and for validation, what a model reads and adds over rows of `data`.

    n_rows: of either part, the first ones; 0 for all. settings: see `collect`. Raises what
    `collect` does, and ConfigError for a folder of another command.
    """
    model, tokenizer, source = pretrained
    texts = {}
    for part, file in PARTS.items():
        rows = toolformer_rows_in(data, file)[: n_rows or None]
        texts[part] = [format_example(row.prompt, row.target, tokenizer).input_ids for row in rows]
    for layer in layers:  # before there is a folder
        site_of(pretrained.model, layer)
    claim(out, "itl transcoder collect", f"*/{COLLECTION}")
    found = []
    for part, some in texts.items():
        with Progress(f"activations of {name or source}, {part}", 0) as progress:

            def show(done: int, total: int, progress: Progress = progress) -> None:
                progress.total = total
                progress.at(done)

            collected = collect(
                model, some, layers, out / part, name=source, skip_ids=bos_ids(tokenizer),
                on_progress=show, **settings,
            )  # fmt: skip
        found.append(collected)
    return found


def train(run: TranscoderRun, label: str) -> None:
    """Train a run to its end with progress."""
    with Progress(label, run.settings.n_steps) as progress:
        run.train(lambda row: progress.at(row["step"], f"unexplained {row['unexplained']:.3f}"))
