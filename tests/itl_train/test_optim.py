"""Muon against torch's own, and the schedule."""

import pytest
import torch
from torch import nn

from itl_train.optim import Muon, orthogonalise, warmup_then_linear


def test_singular_values_come_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (2, 32, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3
        assert values.max() < 1.3


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_equal_those_of_torch(weight_decay: float) -> None:
    """Each stacked matrix moves as torch's Muon moves it alone, up to bfloat16 rounding there."""
    generator = torch.Generator().manual_seed(1)
    stacked = nn.Parameter(torch.randn(24 + 8 + 8, 24, generator=generator) / 5)
    tall = nn.Parameter(torch.randn(48, 24, generator=generator) / 5)
    alone = [nn.Parameter(part.detach().clone()) for part in (*stacked.split((24, 8, 8)), tall)]
    ours = Muon(
        [(stacked, (24, 8, 8)), (tall, (48,))], lr=0.02, momentum=0.95, weight_decay=weight_decay
    )
    theirs = torch.optim.Muon(
        alone, lr=0.02, momentum=0.95, weight_decay=weight_decay, nesterov=True
    )
    for _ in range(5):
        gradients = [torch.randn(p.shape, generator=generator) for p in alone]
        for parameter, gradient in zip(alone, gradients, strict=True):
            parameter.grad = gradient
        stacked.grad, tall.grad = torch.cat(gradients[:3]), gradients[3].clone()
        before = torch.cat([p.detach().flatten() for p in alone])
        ours.step()
        theirs.step()
        moved = torch.cat([p.detach().flatten() for p in alone]) - before
        gap = torch.cat([stacked.detach().flatten(), tall.detach().flatten()]) - (before + moved)
        # bfloat16 keeps 8 bits; the five steps lose a little more.
        assert gap.norm() < 0.08 * moved.norm()


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="has no rows"):
        Muon([(nn.Parameter(torch.zeros(6, 4)), (4, 4))])


def test_the_rate_rises_then_falls_to_zero() -> None:
    factors = [warmup_then_linear(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)
