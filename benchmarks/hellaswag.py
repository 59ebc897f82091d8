"""HellaSwag by lm-eval, in this process: what a model still knows of everyday life.

The data are the hub's, or a local file of items `{"query": ..., "choices": [...], "gold": n}`, one
a line, as lm-eval prepares them.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itl_env.errors import ConfigError, ITLError

LOCAL = "hellaswag_local"


@dataclass(frozen=True)
class HellaSwag:
    """Items answered right, by the likelier ending and by the likelier ending for its length.

    acc, acc_norm: one 0 or 1 for each item, in the order of the data, so that models can be
    compared item by item.
    """

    acc: list[int]
    acc_norm: list[int]


def hellaswag(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    file: str | Path = "",
    batch_size: int = 16,
) -> HellaSwag:
    """Ask the first `limit` items of the validation set; all of them by default.

    file: of items, compressed or not; the hub's data by default.

    Raises ConfigError for a file that is not there, and ITLError if lm-eval cannot ask, for want of
    a connection, say.
    """
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM

    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1.")
    task: str | dict[str, Any] = "hellaswag"
    if file:
        if not Path(file).is_file():
            raise ConfigError(f"There is no file {file} of HellaSwag items.")
        task = _local(Path(file).absolute())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        # `simple_evaluate` would read the files of all its 14,000 tasks and list the packages that
        # are installed, each time.
        there = Path(lm_eval.tasks.__file__).parent / "hellaswag"
        manager = lm_eval.tasks.TaskManager(include_path=there, include_defaults=False)
        results = lm_eval.evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            manager.load([task]),
            limit=limit,
            bootstrap_iters=0,
        )
    except Exception as error:  # data sets and lm-eval raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        way = "" if file else "; a file of its items serves as well (hellaswag_file)"
        raise ITLError(f"HellaSwag cannot be asked: {reason.rstrip('.')}{way}.") from error
    assert results is not None
    (samples,) = results["samples"].values()
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return HellaSwag(
        [int(sample["acc"]) for sample in ordered], [int(sample["acc_norm"]) for sample in ordered]
    )


def _local(file: Path) -> dict[str, Any]:
    """lm-eval's task over a file."""
    return {
        "task": LOCAL,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
