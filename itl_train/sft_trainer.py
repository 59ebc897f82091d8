"""TRL's trainer, computing no more than a loss over dialogues needs.

Dialogues begin alike, with a system message, say. What all rows of a batch share is read once, and
the rows go on from its keys and values: causal attention makes that the same loss, with the same
gradients. On a CPU, where TRL scores every position against the whole vocabulary, only positions
with something to learn are scored.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from trl import SFTTrainer

from itl_agents.continuation import SHARED, keeps_plain_cache, last_logits
from itl_agents.render import IGNORED


class DialogueTrainer(SFTTrainer):
    """`SFTTrainer` for rows of `input_ids` and `labels` that often begin alike."""

    _shares: bool | None = None  # whether openings are read once, found out at the first step

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean negative log-likelihood of the labels, in nats; see `SFTTrainer`."""
        bare = self.accelerator.unwrap_model(model)
        if self._shares is None:
            self._shares = self._can_share(bare)
        if self._shares:
            # Not through the wrapper, in which processes would wait for others that share nothing.
            inputs = after_opening(bare, inputs)
        on_cpu = inputs["input_ids"].device.type == "cpu"
        if return_outputs or not on_cpu or self.aux_loss_enabled or not last_logits(bare, 1):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, n = labels_loss(model, inputs)
        if num_items_in_batch is None:
            loss = total / max(n, 1)
        else:
            # As TRL: the count is of all processes, over which gradients are averaged.
            loss = total / num_items_in_batch * self.accelerator.num_processes
        n_tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum())
        self._total_train_tokens += int(n_tokens.sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a run's folder says what it is, and a draft would name neither base nor data."""

    def _can_share(self, model: Any) -> bool:
        """Whether a batch may be read in two parts: with keys and values that can be kept, no
        dropout (of which rows would share a mask), and no loss over the router of experts.
        """
        drops = getattr(model.config, "attention_dropout", 0.0) or any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
        )
        no = drops or self.args.gradient_checkpointing or self.aux_loss_enabled
        return not no and keeps_plain_cache(model)


def after_opening(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs from where rows differ or are trained, with the keys and values of what precedes.

    inputs: `input_ids`, `labels`, `attention_mask` (rows, tokens), padded on the right.

    What is returned holds `input_ids` and `labels` (rows, rest), `position_ids` of the rest, the
    whole `attention_mask`, and `past_key_values`, to which one forward pass may be added. If little
    is shared, it is the inputs themselves.
    """
    ids, labels = inputs["input_ids"], inputs["labels"]
    alike = (ids == ids[0]).all(0) & (labels == IGNORED).all(0) & inputs["attention_mask"].all(0)
    # The last token before one that is trained says what is expected there.
    n = int(alike.long().cumprod(0).sum()) - 1
    if len(ids) == 1 or n < SHARED:
        return inputs
    opening = DynamicCache()
    model(
        input_ids=ids[:1, :n], past_key_values=opening, use_cache=True, **last_logits(model, 1)
    )  # fmt: skip
    cache = DynamicCache()
    for place, layer in enumerate(opening.layers):
        rows = [part.expand(len(ids), -1, -1, -1) for part in (layer.keys, layer.values)]
        cache.update(*rows, place)
    return {
        **inputs,
        "input_ids": ids[:, n:],
        "labels": labels[:, n:],
        "position_ids": torch.arange(n, ids.shape[1], device=ids.device).expand(len(ids), -1),
        "past_key_values": cache,
    }


def labels_loss(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, int]:
    """The negative log-likelihood of the labels (rows, tokens), summed, in nats; and their number.

    inputs: what the model takes, and `labels`, of which each is expected one position before.
    """
    targets = inputs["labels"][:, 1:]
    trained = targets != IGNORED
    columns = trained.any(0).nonzero()[:, 0]  # of which logits are computed, for all rows
    given = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**{"use_cache": False, **given, "logits_to_keep": columns}).logits
    here = trained[:, columns]
    total = F.cross_entropy(
        logits[here].float(), targets[:, columns][here].to(logits.device), reduction="sum"
    )
    return total, int(here.sum())
