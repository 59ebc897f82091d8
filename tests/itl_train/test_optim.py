"""Muon against torch's own, and the schedule."""

import pytest
import torch
from torch import nn

from itl_train.optim import (
    MemberAdamW,
    Muon,
    clip_gradients,
    gradient_norms,
    orthogonalise,
    warmup_then_cosine,
    warmup_then_linear,
)


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


def test_each_member_moves_as_torchs_muon_moves_it() -> None:
    """Slice by slice of a member axis, each at its own rate."""
    generator = torch.Generator().manual_seed(4)
    rates = torch.tensor([0.02, 0.005, 0.0])
    ours = nn.Parameter(torch.randn(3, 24 + 16, 16, generator=generator) / 5)
    optimizer = Muon([(ours, (24, 16))], lr=rates, momentum=0.95, weight_decay=0.1)
    alone = [[nn.Parameter(p.clone()) for p in own.split((24, 16))] for own in ours.detach()]
    theirs = [
        torch.optim.Muon(own, lr=float(lr), momentum=0.95, weight_decay=0.1, nesterov=True)
        for own, lr in zip(alone, rates, strict=True)
    ]
    before = ours.detach().clone()
    for _ in range(5):
        ours.grad = torch.randn(ours.shape, generator=generator)
        for own, gradient in zip(alone, ours.grad.clone(), strict=True):
            for parameter, part in zip(own, gradient.split((24, 16)), strict=True):
                parameter.grad = part.clone()
        for each in (optimizer, *theirs):
            each.step()
    for i in range(3):
        expected = torch.cat([p.detach() for p in alone[i]])
        moved = (expected - before[i]).norm()
        # torch multiplies in bfloat16, which keeps 8 bits; the five steps lose a little more.
        assert (ours[i] - expected).norm() <= 0.08 * moved, i
    assert torch.equal(ours[2], before[2]), "a member at rate 0 stays"


def test_each_member_moves_as_torchs_adamw_moves_it() -> None:
    generator = torch.Generator().manual_seed(2)
    rates = torch.tensor([0.01, 0.002, 0.0])
    shapes = [(3, 5, 4), (3, 6)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [[nn.Parameter(p[i].detach().clone()) for p in ours] for i in range(3)]
    optimizer = MemberAdamW(ours, rates, betas=(0.9, 0.95), weight_decay=0.1)
    theirs = [
        torch.optim.AdamW(own, lr=float(lr), betas=(0.9, 0.95), weight_decay=0.1)
        for own, lr in zip(alone, rates, strict=True)
    ]
    for _ in range(6):
        for place, parameter in enumerate(ours):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient
            for i in range(3):
                alone[i][place].grad = gradient[i].clone()
        for each in (optimizer, *theirs):
            each.step()
    for i in range(3):
        for mine, other in zip(ours, alone[i], strict=True):
            assert torch.allclose(mine[i], other, atol=1e-6)


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    generator = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.zeros(2, 4, 3)), nn.Parameter(torch.zeros(2, 5))]
    gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
    for gradient in gradients:
        gradient[1] /= 100  # the second member's gradient is short enough
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norms = gradient_norms(parameters, 2)
    clip_gradients(parameters, norms, 1.0)
    for i in range(2):
        alone = [nn.Parameter(p[i].detach().clone()) for p in parameters]
        for parameter, gradient in zip(alone, gradients, strict=True):
            parameter.grad = gradient[i].clone()
        norm = nn.utils.clip_grad_norm_(alone, 1.0)
        assert norms[i] == pytest.approx(float(norm))
        for parameter, own in zip(parameters, alone, strict=True):
            assert parameter.grad is not None
            assert own.grad is not None
            assert torch.allclose(parameter.grad[i], own.grad)


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="has no rows"):
        Muon([(nn.Parameter(torch.zeros(6, 4)), (4, 4))])


def test_the_rate_rises_then_falls_to_zero() -> None:
    factors = [warmup_then_linear(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


def test_the_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    assert warmup_then_cosine(4, 100, 10) == pytest.approx(0.5)
    for step in range(10, 100):
        assert warmup_then_cosine(step, 100, 10) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
