"""One optimizer step of a NanoLlama, or of an ensemble, on a batch of dialogues."""

import math
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itl_agents.nanollama import NanoLlama
from itl_agents.nanollama.model import Block
from itl_agents.render import IGNORED
from itl_env.errors import ConfigError
from itl_train.batches import Batch
from itl_train.nano_config import NanoConfig
from itl_train.optim import (
    MemberAdamW,
    Muon,
    clip_gradients,
    gradient_norms,
    warmup_then_cosine,
    warmup_then_linear,
)
from itl_train.team import Team
from itl_train.watch import Probe

ALONE = Team()
BETAS = (0.9, 0.95)
SCHEDULES = {"linear": warmup_then_linear, "cosine": warmup_then_cosine}


def check_compiler(config: NanoConfig) -> None:
    """Raise ConfigError if the model is to be compiled and there is no compiler."""
    wanted = os.environ.get("CXX", "g++")
    if config.compile and not any(shutil.which(name) for name in (wanted, "clang++")):
        raise ConfigError(f"compile needs a C++ compiler, and there is no {wanted}; install one.")


def compiled(model: NanoLlama) -> NanoLlama:
    """The model with the same weights, whose passes `torch.compile` joins."""
    # Batches differ in length, for each of which it would be compiled anew.
    whole: NanoLlama = torch.compile(model, dynamic=True)  # type: ignore[assignment]
    return whole


def make_optimizers(model: NanoLlama, config: NanoConfig) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, head and gains; Muon or AdamW for the matrices of the blocks.

    Rates are set at each step; those of an ensemble's optimizers are tensors (members,).
    """
    shape = model.config
    d, d_kv = shape.d_model, shape.kv_heads * shape.d_head
    hidden: list[tuple[nn.Parameter, tuple[int, ...]]] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        hidden += [
            (block.qkv, (d, d_kv, d_kv)),
            (block.out, (d,)),
            (block.gate_up, (shape.hidden_width, shape.hidden_width)),
            (block.down, (d,)),
        ]
    is_hidden = {id(parameter) for parameter, _ in hidden}
    others = [p for p in model.parameters() if id(p) not in is_hidden]
    muon = []
    if config.optimizer == "muon":
        muon = [Muon(hidden, weight_decay=config.weight_decay)]
    else:
        others += [parameter for parameter, _ in hidden]
    decay = config.weight_decay
    if model.n_members is not None:
        rates = torch.zeros(model.n_members, device=model.head.device)
        return [MemberAdamW(others, rates, betas=BETAS, weight_decay=decay), *muon]
    return [torch.optim.AdamW(others, betas=BETAS, weight_decay=decay, fused=True), *muon]


def learning_rates(config: NanoConfig, step: int) -> tuple[float, float]:
    """AdamW's and Muon's at `step` (0-based); 0 when all steps are taken."""
    if step >= config.n_steps:
        return 0.0, 0.0
    factor = SCHEDULES[config.schedule](step, config.horizon or config.n_steps, config.n_warmup)
    return config.lr * factor, config.muon_lr * factor


class Stepped(NamedTuple):
    """What a step says of itself.

    loss: the mean over the targets of all processes, before the step.
    gradient_norm: before clipping, if it was wanted. probed: what the probe saw.
    """

    loss: float
    gradient_norm: float | None
    probed: dict[str, Any] | None


class MembersStepped(NamedTuple):
    """The same of an ensemble's step, by member.

    losses: (members,). gradient_norms: (members,), if they were wanted.
    """

    losses: Tensor
    gradient_norms: Tensor | None


def train_step(
    model: NanoLlama,
    optimizers: Sequence[torch.optim.Optimizer],
    rates: Sequence[float],
    batch: Batch,
    *,
    clip: float = 0.0,
    dtype: torch.dtype = torch.float32,
    team: Team = ALONE,
    measure: bool = False,
    probe: Probe | None = None,
) -> Stepped:
    """One step of each optimizer.

    rates: of `learning_rates`; the second is not used where AdamW takes all weights.
    clip: the largest norm that a gradient may have; 0 for any.
    dtype: of matrix products; float32, or bfloat16 by autocast.
    team: the processes that share the batch.
    measure: whether the gradient's norm is wanted. probe: looks into this step.

    The weights stay as they are if the loss is not finite.
    """
    own = 0.0
    for part in batch.parts(model.tokens_at_once):
        logits = _logits(model, part, dtype, probe)
        # A share of the mean over all parts, and over those of other processes.
        loss = F.cross_entropy(logits, part.targets, reduction="sum") / batch.n_targets
        loss.backward()
        own += loss.item()
    value = team.add(model.parameters(), own)
    norm = gradient_norms(model.parameters()) if clip or measure else None
    probed = None if probe is None else probe.row(model)
    if math.isfinite(value):
        if norm is not None and clip:
            clip_gradients(model.parameters(), norm, clip)
        _update(optimizers, rates)
    return Stepped(value, None if norm is None else float(norm), probed)


def ensemble_step(
    model: NanoLlama,
    optimizers: Sequence[torch.optim.Optimizer],
    rates: Sequence[Tensor],
    batch: Batch,
    *,
    clip: float = 0.0,
    dtype: torch.dtype = torch.float32,
    measure: bool = False,
) -> MembersStepped:
    """One step of every member.

    rates: AdamW's and Muon's, each (members,); the weights of a member whose rates are 0 stay as
        they are.
    batch: of `stacked`. clip, dtype, measure: see `train_step`.
    """
    each = F.cross_entropy(
        _logits(model, batch, dtype).flatten(0, 1),
        batch.targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    losses = each.view(batch.targets.shape).sum(1) / (batch.targets != IGNORED).sum(1)
    losses.sum().backward()  # no weight is shared, so each member gets its own gradient
    norms = None
    if clip or measure:
        norms = gradient_norms(model.parameters(), model.n_members)
    if norms is not None and clip:
        clip_gradients(model.parameters(), norms, clip)
    _update(optimizers, rates)
    return MembersStepped(losses.detach(), norms)


def _logits(
    model: NanoLlama, batch: Batch, dtype: torch.dtype, probe: Probe | None = None
) -> Tensor:
    """In float32, whatever the dtype of the matrix products before."""
    looked_at = {} if probe is None else {"probe": probe}
    with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
        logits: Tensor = model(batch.input_ids, positions=batch.positions, **looked_at)
    return logits.float()


def _update(
    optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[float] | Sequence[Tensor]
) -> None:
    for optimizer, rate in zip(optimizers, rates, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
