"""Optimizers for small models and for ensembles of them, gradient clipping, schedules.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces each
matrix's momentum by a nearly orthogonal matrix, computed with five Newton-Schulz steps. torch's own
`torch.optim.Muon` does the same one matrix at a time in bfloat16; here matrices of one shape are
orthogonalised together in float32, which on a CPU and at these sizes is several times faster.

An ensemble's weights carry a leading member axis, and each member has a learning rate of its own:
`MemberAdamW` and `Muon` take a tensor (members,) for `lr`. A member moves as it would alone.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration that torch uses too


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each of `matrices` (n, rows, columns) near 1."""
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _by_member(lr: float | Tensor, weights: Tensor) -> float | Tensor:
    """The rates in the shape in which they multiply weights (members, ...)."""
    return lr.view(-1, *[1] * (weights.ndim - 1)) if isinstance(lr, Tensor) else lr


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; equal to `torch.optim.Muon` up to its bfloat16 rounding.

    parameters: pairs of a parameter ([members,] rows, columns) and the row counts of the matrices
        stacked in it (queries, keys and values, say), each of which is orthogonalised alone.
    lr: step size; a matrix's update has spectral norm of about lr * sqrt(max(1, rows/columns)). A
        tensor (members,) for an ensemble.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[nn.Parameter, tuple[int, ...]]],
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        pairs = list(parameters)
        for parameter, rows in pairs:
            if parameter.ndim not in (2, 3) or sum(rows) != parameter.shape[-2]:
                raise ValueError(f"A parameter {tuple(parameter.shape)} has no rows {rows}.")
        self._rows = [rows for _, rows in pairs]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([parameter for parameter, _ in pairs], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        group = self.param_groups[0]
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        updates: dict[tuple[int, ...], list[Tensor]] = {}
        places: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter, rows in zip(group["params"], self._rows, strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(state["momentum"], momentum)  # Nesterov
            for part, place in zip(update.split(rows, -2), parameter.split(rows, -2), strict=True):
                # A matrix and its transpose are orthogonalised alike, so they share a batch.
                wide = part if part.shape[-2] <= part.shape[-1] else part.mT
                updates.setdefault(tuple(wide.shape), []).append(wide)
                places.setdefault(tuple(wide.shape), []).append(place)
        for shape, batch in updates.items():
            for place, new in zip(places[shape], orthogonalise(torch.stack(batch)), strict=True):
                n_rows, n_columns = place.shape[-2:]
                rate = _by_member(lr, place)
                place.mul_(1 - rate * decay)
                new = new if place.shape == new.shape else new.mT
                place.sub_(new * (rate * max(1.0, n_rows / n_columns) ** 0.5))


class MemberAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` for weights (members, ...), with a learning rate for each member.

    lr: (members,).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        group = self.param_groups[0]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - beta1)
            state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            scale = state["square"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"]))
            rate = _by_member(lr, parameter)
            parameter.mul_(1 - rate * group["weight_decay"])
            update = state["mean"] / scale.add_(group["eps"])
            parameter.sub_(update.mul_(rate / (1 - beta1 ** state["step"])))


@torch.no_grad()
def gradient_norms(parameters: Iterable[nn.Parameter], n_members: int | None = None) -> Tensor:
    """The norm of all gradients together, (), or of each member's, (members,)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if n_members is None:
        return nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(g.view(n_members, -1), dim=1) for g in gradients]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norms: Tensor, max_norm: float) -> None:
    """Scale gradients down to `max_norm` where their norms, of `gradient_norms`, exceed it."""
    scale = (max_norm / (norms + 1e-6)).clamp_max(1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(_by_member(scale, parameter) if scale.ndim else scale)


def warmup_then_linear(step: int, n_steps: int, n_warmup: int) -> float:
    """The factor of the learning rate at `step` (0-based): up over n_warmup steps, then to 0."""
    return min(1.0, (step + 1) / max(1, n_warmup)) * (1 - step / n_steps)


def warmup_then_cosine(step: int, n_steps: int, n_warmup: int) -> float:
    """Up over n_warmup steps, then down half a cosine to 0 at n_steps."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))
