"""Optimizers for small models: Muon for hidden matrices beside AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces each
matrix's momentum by a nearly orthogonal matrix, computed with five Newton-Schulz steps. torch's own
`torch.optim.Muon` does the same one matrix at a time in bfloat16; here matrices of one shape are
orthogonalised together in float32, which on a CPU and at these sizes is several times faster.
"""

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


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; equal to `torch.optim.Muon` up to its bfloat16 rounding.

    parameters: pairs of a parameter (rows, columns) and the row counts of the matrices stacked in
        it (queries, keys and values, say), each of which is orthogonalised alone.
    lr: step size; a matrix's update has spectral norm of about lr * sqrt(max(1, rows/columns)).
    """

    def __init__(
        self,
        parameters: Iterable[tuple[nn.Parameter, tuple[int, ...]]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        pairs = list(parameters)
        for parameter, rows in pairs:
            if parameter.ndim != 2 or sum(rows) != parameter.shape[0]:
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
            for part, place in zip(update.split(rows), parameter.split(rows), strict=True):
                # A matrix and its transpose are orthogonalised alike, so they share a batch.
                wide = part if part.shape[0] <= part.shape[1] else part.mT
                updates.setdefault(tuple(wide.shape), []).append(wide)
                places.setdefault(tuple(wide.shape), []).append(place)
        for shape, batch in updates.items():
            for place, new in zip(places[shape], orthogonalise(torch.stack(batch)), strict=True):
                n_rows, n_columns = place.shape
                place.mul_(1 - lr * decay)
                place.add_(
                    new if place.shape == new.shape else new.mT,
                    alpha=-lr * max(1.0, n_rows / n_columns) ** 0.5,
                )


def warmup_then_linear(step: int, n_steps: int, n_warmup: int) -> float:
    """The factor of the learning rate at `step` (0-based): up over n_warmup steps, then to 0."""
    return min(1.0, (step + 1) / max(1, n_warmup)) * (1 - step / n_steps)
