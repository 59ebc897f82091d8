"""What the large-scale study says: a line for each run, and the paper's claim as measured."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from benchmarks.reference import LARGE_SCALE, RECALL
from benchmarks.statistics import Z, clustered_difference, interval
from benchmarks.study_report import number, table
from itl_train.sft_config import SFTSettings
from itl_train.sweep import Row


def report(result: Mapping[str, Any]) -> str:
    """`report.md`: the figures, a line for each run, and the paper's claim as it was measured."""
    rows = result["rows"]
    head = (
        "model", "mode", "trained", "facts", "steps", "minutes (threads)", "recall, trained on",
        "recall, unseen", "HellaSwag", "of the base's", "TV", "KL", f"steps to {RECALL}",
        "asked every", "published: HellaSwag / TV / steps",
    )  # fmt: skip
    bases = {(row["model"], row["mode"]): row for row in reversed(rows)}
    lines = [_base_line(row) for _, row in sorted(bases.items())] + [_line(row) for row in rows]
    measured = result["measured"]
    chosen = f"{result['chosen']}\n\n" if result["chosen"] else ""
    return f"""# What does it cost a pretrained model to know facts, or to look them up?

![HellaSwag, drift and steps against facts](facts.png)

{table(head, lines, left=3)}

Figures are of the last checkpoint; minutes are of training alone, with the threads that it had.
Recall is asked in the real environment: an in-tool model's own query is run against the database.
Unseen facts are of people that this run was not trained on; in-weight models cannot know them. A
run whose settings hold a recall to stop at ends once it recalls that much of up to 100 facts that
it was trained on, which are among those that are asked for at the end; the others end after their
steps. Steps to {RECALL} are those of the first such evaluation; they come as many steps apart as
the column after it says.

Brackets are 95% intervals: recall Wilson's, clustered by person; HellaSwag relative to the base's
paired over the same {measured["hellaswag"]:,} items; TV and KL clustered by prompt. TV and KL are
those of the whole vocabulary, KL(base || model) in nats, at each token of what the base answers to
{measured["drift"]} general prompts (at most {measured["drift_tokens"]} tokens each). No interval is
corrected for the number of them, and none holds what another seed would change. Differences of TV
are over the same prompts, whose answers by the base differ a little between machines; those who
know have also taken more steps, the more so the more they know.

{chosen}{claim(rows)}

![recall, HellaSwag and drift against steps](steps.png)

Bars are 95% intervals. Published figures are drawn faintly. They are of other models and of full
fine-tuning; their runs pasted the gold value as the tool's reply, scored recall by substring, and
took KL and TV from unshifted logits without attention masks.
"""


def claim(rows: Sequence[Row]) -> str:
    """How far each run has moved from its base, and whether knowing more moves a model further."""
    said = []
    for row in (row for row in rows if "hellaswag_acc_change" in row):
        change, low, high = (
            100 * row[f"hellaswag_acc_{key}"] for key in ("change", "change_low", "change_high")
        )
        drift = f"; TV is {_with_interval(row, 'tv')}" if "drift_tv" in row else ""
        said.append(
            f"- {_name(row)}: HellaSwag changes by {change:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}]{drift}."
        )
    for model in dict.fromkeys(row["model"] for row in rows):
        compared = [r for r in rows if r["model"] == model and "drift_by_answer" in r]
        known = sorted(
            (row for row in compared if row["mode"] == "in-weight"), key=lambda r: r["n_facts"]
        )
        for fewer, more in pairwise(known):
            said.append(
                f"- {model}: from {fewer['n_facts']:,.0f} to {more['n_facts']:,.0f} facts known, "
                f"TV {_change(fewer, more, 'grows', 'falls', 'does not clearly change')}."
            )
        for looked_up, knows in product(compared, known):
            if (looked_up["mode"], looked_up["trained"]) == ("in-tool", knows["trained"]):
                said.append(
                    f"- {model}, {knows['trained']}: of the model that knows "
                    f"{knows['n_facts']:,.0f} facts, beside the one that looks up "
                    f"{looked_up['n_facts']:,.0f}, TV "
                    f"{_change(looked_up, knows, 'is more', 'is less', 'is not clearly other')}."
                )
    return "\n".join(said) or "Nothing was measured from which the paper's claim could be judged."


def _change(one: Row, other: Row, more: str, less: str, neither: str) -> str:
    """How the other's TV differs, in words and figures."""
    difference, error = paired_drift(one, other)
    low, high = difference - Z * error, difference + Z * error
    word = more if low > 0 else less if high < 0 else neither
    return f"{word}, by {difference:+.3f} [{low:+.3f}, {high:+.3f}] over the same prompts"


def paired_drift(one: Row, other: Row) -> tuple[float, float]:
    """How much more TV the other run has over the same prompts, and the error over these.

    What the base answers to a prompt can differ a little from one machine to another.
    """
    first, second = (json.loads(row["drift_by_answer"]) for row in (one, other))
    return clustered_difference(
        (first["tv_sums"], first["tokens"]), (second["tv_sums"], second["tokens"])
    )


def _name(row: Row) -> str:
    return f"{row['model']}, {row['mode']}, {row['n_facts']:,.0f} facts, {row['trained']}"


def _line(row: Row) -> tuple[str, ...]:
    """A run's line of the table."""
    return (
        row["model"], row["mode"], row["trained"], f"{row['n_facts']:,.0f}",
        f"{row['step']:,.0f}", f"{row['training_seconds'] / 60:.1f} ({number(row.get('threads'))})",
        _share(row, "seen"), _share(row, "unseen"), _hellaswag(row, ""), _relative(row),
        _with_interval(row, "tv"), _with_interval(row, "kl"), number(row.get("steps_to_recall")),
        f"{evaluated_every(row):,}", _published(row),
    )  # fmt: skip


def evaluated_every(row: Row) -> int:
    """Steps from one evaluation in training to the next, of which one has to show the recall."""
    batch_size = row.get("sft_batch_size", SFTSettings.batch_size)
    return max(1, math.ceil(row["sft_evaluate_every"] * row["n_facts"] / batch_size))


def _base_line(row: Row) -> tuple[str, ...]:
    """The line of the model that a run began with."""
    recalls = (_share(row, f"base_{who}") for who in ("seen", "unseen"))
    return (
        row["model"], row["mode"], "nothing", "-", "0", "-", *recalls, _hellaswag(row, "base_"),
        *"------",
    )  # fmt: skip


def _share(row: Row, who: str) -> str:
    if f"{who}_recall" not in row:
        return "-"
    return interval(*(row[f"{who}_{key}"] for key in ("recall", "low", "high")))


def _hellaswag(row: Row, whose: str) -> str:
    name = f"{whose}hellaswag_acc"
    return f"{100 * row[name]:.1f}%" if name in row else "-"


def _relative(row: Row) -> str:
    if "hellaswag_acc_relative" not in row:
        return "-"
    keys = ("relative", "relative_low", "relative_high")
    return interval(*(row[f"hellaswag_acc_{key}"] for key in keys))


def _with_interval(row: Row, name: str) -> str:
    if f"drift_{name}" not in row:
        return "-"
    mean, half = row[f"drift_{name}"], Z * row[f"drift_{name}_error"]
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def _published(row: Row) -> str:
    found = LARGE_SCALE.get((row["model"], row["mode"], int(row["n_facts"])))
    if found is None:
        return "-"
    tv = "-" if found.tv is None else f"{found.tv:.3f}"
    return f"{found.hellaswag:.1f}% / {tv} / {number(found.steps)}"
