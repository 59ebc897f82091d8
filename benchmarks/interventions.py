"""What becomes of a model's writing while something stands in for the MLP of one block.

For each subset of `itl toolformer data`: the cross-entropy of the targets, how often a call is
begun, is valid and comes to the right value, and how often the target is written exactly.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.statistics import exact_mcnemar, paired_difference, paired_shares, percent, wilson
from itl_agents.sites import Below, Replacement, Site, recorded, replaced
from itl_agents.transcoder import Transcoder, dosed
from itl_env.toolformer import KINDS, Kind, ToolformerRow, call_of, called, is_right
from itl_train.activations import kept_of, run_blocks
from itl_train.toolformer_text import (
    Score,
    batches_by_length,
    bos_ids,
    format_example,
    score_targets,
    written_after,
)
from itl_train.transcoder import CHUNK

Row = dict[str, Any]

SHARES = ("tool_call", "valid_format", "math_correct", "exact")
"""The metrics that are shares of all rows of a subset; `math_correct` is told of tool rows only."""

ACTIVITY = {"mean_a_base": "mean a, base", "mean_a_delta": "mean a, delta"}
"""How active features are on the prompts and targets of a subset, as a report heads them."""

ROOM = 8  # tokens that may be written beyond the longest target


@dataclass(frozen=True)
class Condition:
    """What stands in for an MLP.

    name: of the rows. instead: None for the MLP itself. base, delta: whose features take part.
    """

    name: str
    site: Site
    instead: Replacement | None
    base: Transcoder | None = None
    delta: Transcoder | None = None


class Subject:
    """A fine-tuned model and the rows it is asked, by subset."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[Kind, Sequence[ToolformerRow]],
        batch_size: int = 100,
    ) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.batch_size = batch_size
        # Some gigabytes of logits, whatever the vocabulary.
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._loss_batch = max(1, min(batch_size, 2**28 // (64 * vocabulary)))
        self._at: Site | None = None
        self._read: dict[Kind, Tensor] = {}
        self._passes: dict[Kind, Below] = {}
        self.begins = bos_ids(tokenizer)
        self.rendered = {
            kind: [format_example(row.prompt, row.target, tokenizer) for row in some]
            for kind, some in rows.items()
        }

    def digest(self, kind: Kind) -> str:
        """A hash of the rows of a subset."""
        found = hashlib.blake2b(repr(list(self.rows[kind])).encode(), digest_size=8)
        return found.hexdigest()

    def scores(self, condition: Condition, kind: Kind) -> list[Score]:
        """Of each row, the mean cross-entropy of its target in nats a token, and whether the target
        is what the model writes.
        """
        with self._below(condition.site, kind).passes(), self._under(condition):
            return score_targets(self.model, self.rendered[kind], self._loss_batch)

    def texts(self, condition: Condition, kind: Kind, scores: Sequence[Score]) -> list[str]:
        """What is written after each prompt, greedily.

        scores: of the rows under this condition.
        """
        prompts = [row.prompt for row in self.rows[kind]]
        with self._under(condition):
            return written_after(
                self.model, self.tokenizer, prompts, self.rendered[kind], scores, room=ROOM,
                batch_size=self.batch_size,
            )  # fmt: skip

    def measured(self, condition: Condition, kind: Kind) -> tuple[Row, list[Row]]:
        """The metrics of a subset under a condition, and what was written for each row."""
        scores = self.scores(condition, kind)
        losses, texts = [score.loss for score in scores], self.texts(condition, kind, scores)
        rows = self.rows[kind]
        found: Row = {"subset": kind, "n": len(rows), "cross_entropy": sum(losses) / len(losses)}
        for metric, judge in _JUDGES.items():
            if metric == "math_correct" and kind == "copy":
                continue
            right = sum(judge(row, text) for row, text in zip(rows, texts, strict=True))
            low, high = wilson(right, len(rows))
            found |= {metric: right / len(rows), f"{metric}_right": right}
            found |= {f"{metric}_low": low, f"{metric}_high": high}
        for part in ("base", "delta"):
            features = getattr(condition, part)
            if features is not None:
                read = self.reads(condition.site, kind)
                found[f"mean_a_{part}"] = float(features.encode(read).mean())
        written = [
            {
                "id": row.id, "prompt": row.prompt, "target": row.target, "written": text,
                "cross_entropy": loss,
                **{metric: judge(row, text) for metric, judge in _JUDGES.items()},
            }
            for row, text, loss in zip(rows, texts, losses, strict=True)
        ]  # fmt: skip
        return found, written

    def reads(self, site: Site, kind: Kind) -> Tensor:
        """What the site reads at each token of prompts and targets (n_tokens, d_model).

        It is the same under any condition at this site, since what is read comes before it.
        """
        below = self._below(site, kind)
        if kind not in self._read:
            self._read[kind] = self._reads(site, kind, below)
        return self._read[kind]

    def _below(self, site: Site, kind: Kind) -> Below:
        """Of the passes over a subset; only those of one site are kept, for its next conditions."""
        if self._at != site:
            self._at, self._read, self._passes = site, {}, {}
        return self._passes.setdefault(kind, Below(self.model, site.layer))

    @torch.inference_mode()
    def _reads(self, site: Site, kind: Kind, below: Below) -> Tensor:
        texts = [row.input_ids for row in self.rendered[kind]]
        skipped = torch.tensor(self.begins, dtype=torch.long)
        found = []
        with below.passes(), recorded(self.model, [site]) as seen:
            # The batches of `score_targets`, whose passes these repeat.
            for batch in batches_by_length(texts, self._loss_batch):
                some = [texts[i] for i in batch]
                run_blocks(self.model, some)
                read = seen[site.layer].read
                found.append(read[kept_of(some, skipped).to(read.device)])
        return torch.cat(found)

    def _under(self, condition: Condition) -> Any:
        if condition.instead is None:
            return nullcontext()
        return replaced(self.model, condition.site, condition.instead, self.begins)


_JUDGES: Mapping[str, Callable[[ToolformerRow, str], bool]] = {
    "tool_call": lambda row, text: called(text),
    "valid_format": lambda row, text: call_of(text) is not None,
    "math_correct": lambda row, text: is_right(text, row.value),
    "exact": lambda row, text: text.strip() == row.target,
}


# -- what stands in ----------------------------------------------------------------------------


class Means:
    """Of the activations of a fine-tuned model at a layer, computed when they are first asked for.

    base: what leaves a part of them. read, wrote: of all tokens of a collection, each
    (n_tokens, d_model).
    """

    def __init__(self, base: Transcoder, read: Tensor, wrote: Tensor) -> None:
        self._base, self._passed = base, (read, wrote)

    @property
    def wrote(self) -> Tensor:
        """Mean of what the block adds, (d_model)."""
        return self._both[0]

    @property
    def left(self) -> Tensor:
        """Mean of what the base leaves of it, (d_model)."""
        return self._both[1]

    @cached_property
    @torch.inference_mode()
    def _both(self) -> tuple[Tensor, Tensor]:
        whole = torch.zeros(self._base.d_model, dtype=torch.float64)
        left, n = torch.zeros_like(whole), len(self._passed[0])
        for start in range(0, n, CHUNK):
            x, y = (part[start : start + CHUNK].float() for part in self._passed)
            whole += y.double().sum(0)
            left += (y - self._base(x)).double().sum(0)
        return (whole / n).float(), (left / n).float()


def mean_ablation(means: Means) -> Replacement:
    """The mean of what the block adds, whatever is read."""
    return lambda x, _: means.wrote.expand_as(x)


def bias_only(base: Transcoder, means: Means) -> Replacement:
    """The base, and the mean of what it leaves: a delta without features."""
    return lambda x, _: base(x) + means.left


def turned(base: Transcoder, delta: Transcoder, seed: int) -> Replacement:
    """The base and a delta whose output is turned by a random orthogonal matrix, so that at each
    token it has the same norm, in directions that mean nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(delta.d_model, delta.d_model, generator=generator)
    turn, upper = torch.linalg.qr(drawn)
    turn = turn * torch.sign(torch.diagonal(upper))  # uniform over orthogonal matrices
    return lambda x, _: base(x) + delta(x) @ turn


def cell_name(layer: int, percentile: float, d_new: int, condition: str, kind: Kind) -> str:
    """Where a condition is written down; what two studies ask for they share."""
    return f"{pair_name(layer, percentile, d_new)}-{condition.replace(' ', '-')}-{kind}"


def pair_name(layer: int, percentile: float, d_new: int) -> str:
    """The name of a base and a delta beside it; d_new 0 is the base alone."""
    return f"layer-{layer:02d}-percentile-{percentile * 100:g}-d-{d_new}"


DOSES = {0.0: "no_delta", 1.0: "full"}
"""Factors of a delta that have a name among the conditions."""


def conditions(
    site: Site,
    base: Transcoder,
    delta: Transcoder,
    means: Means,
    untuned: Transcoder,
    seed: int,
) -> list[Condition]:
    """The base alone, the delta beside it, and the controls.

    untuned: a delta of the same size, trained on the model before it was fine-tuned.
    """
    return [
        Condition("no_delta", site, base.replacement(), base),
        Condition("full", site, dosed(base, delta), base, delta),
        Condition("mean ablation", site, mean_ablation(means)),
        Condition("bias only", site, bias_only(base, means), base),
        Condition("turned delta", site, turned(base, delta, seed), base, delta),
        Condition("untuned delta", site, dosed(base, untuned), base, untuned),
    ]


PAIRED = ("cross_entropy", "tool_call", "exact")
"""Figures of single rows, of which differences between conditions are told."""


def differences(own: Sequence[Row], other: Sequence[Row]) -> Row:
    """How much more `own` has of each figure than `other`, over the same rows, with 95% intervals.

    Both are what `Subject.measured` says of each row. Of a share also how many rows only the one
    (`_more`) or only the other (`_fewer`) has, and McNemar's exact p.
    """
    found: Row = {}
    for figure in PAIRED:
        one, two = ([row[figure] for row in rows] for rows in (own, other))
        is_share = figure in SHARES
        mean, low, high = (paired_shares if is_share else paired_difference)(one, two)
        found |= {figure: mean, f"{figure}_low": low, f"{figure}_high": high}
        if is_share:
            names = (f"{figure}_more", f"{figure}_fewer", f"{figure}_p")
            found |= dict(zip(names, exact_mcnemar(one, two), strict=True))
    return found


# -- tables ------------------------------------------------------------------------------------


def tables(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """A Markdown table for each subset: what `columns` say of a row, and what was measured."""
    found = []
    for kind in KINDS:
        own = [row for row in rows if row["subset"] == kind]
        lines = [f"## {kind} ({own[0]['n']} rows)", ""]
        lines.append(f"| {' | '.join((*columns, 'cross-entropy', *SHARES, *ACTIVITY.values()))} |")
        lines.append(f"|{'---|' * len(columns)}{'---:|' * (1 + len(SHARES) + len(ACTIVITY))}")
        for row in own:
            shares = [
                percent(row[f"{metric}_right"], row["n"]) if f"{metric}_right" in row else ""
                for metric in SHARES
            ]
            cells = (*(say(row) for say in columns.values()), f"{row['cross_entropy']:.2g}")
            active = ["" if row.get(name) is None else f"{row[name]:.3g}" for name in ACTIVITY]
            lines.append(f"| {' | '.join((*cells, *shares, *active))} |")
        found.append("\n".join(lines))
    return "\n\n".join(found)


def paired_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table of `differences`, with their intervals; the columns say between what."""
    lines = [f"| {' | '.join((*columns, *PAIRED))} |"]
    lines.append(f"|{'---|' * len(columns)}{'---:|' * len(PAIRED)}")
    for row in rows:
        cells = [f"{row[name]:g}" if name == "alpha" else str(row[name]) for name in columns]
        for figure in PAIRED:
            form = "+.3f" if figure in SHARES else "+.1e"
            value, low, high = (row[name] for name in (figure, f"{figure}_low", f"{figure}_high"))
            said = f"{value:{form}} [{low:{form}}, {high:{form}}]"
            if figure in SHARES:
                said += f", {row[f'{figure}_more']}:{row[f'{figure}_fewer']}"
            cells.append(said)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
