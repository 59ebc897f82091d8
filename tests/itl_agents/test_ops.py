"""Operations with gradients of their own equal the plain ones, and so do the gradients."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from itl_agents.nanollama import NanoLlama, NanoLlamaConfig, ops


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.double, requires_grad=True)


def test_the_norm_equals_torchs_and_so_does_its_gradient() -> None:
    x = drawn(3, 5, 16)
    expected = F.rms_norm(x, (16,), None, 1e-5)
    assert torch.allclose(ops.normalise(x, 1e-5), expected)
    with torch.no_grad():
        assert torch.allclose(ops.normalise(x, 1e-5), expected)
    assert torch.autograd.gradcheck(lambda x: ops.normalise(x, 1e-5), (x,))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_turned_heads_equal_the_plain_ones_and_so_do_their_gradients(kv_heads: int) -> None:
    heads = drawn(2, 3, 4 + 2 * kv_heads, 6)
    angles = torch.randn(1, 3, 1, 3, dtype=torch.double)
    cos = torch.cat((angles.cos(), angles.cos()), dim=-1)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    q, k, v = ops.turn(heads, cos, sin, 4)
    # A pair turns as a complex number does.
    pairs = torch.complex(heads[..., :3], heads[..., 3:]) * torch.exp(1j * angles)
    turned = torch.cat((pairs.real, pairs.imag), dim=-1)
    for ours, theirs in zip(
        (q, k, v),
        (turned[:, :, :4], turned[:, :, 4:-kv_heads], heads[:, :, -kv_heads:]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)
    assert torch.autograd.gradcheck(lambda heads: ops.turn(heads, cos, sin, 4), (heads,))


def test_swiglu_equals_the_plain_one_and_so_does_its_gradient() -> None:
    gate_up = drawn(2, 3, 8)
    gate, up = gate_up.chunk(2, dim=-1)
    assert torch.allclose(ops.swiglu(gate_up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(ops.swiglu, (gate_up,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_plain_operations_has_the_same_gradients(dtype: torch.dtype) -> None:
    """As on a GPU, and when it is compiled."""
    config = NanoLlamaConfig(d_model=32, n_heads=4, n_kv_heads=2)
    ids = torch.randint(260, (3, 20), generator=torch.Generator().manual_seed(0))
    gradients = []
    for plain in (False, True):
        model = NanoLlama(config, seed=1)
        own = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        with own, mock.patch.object(ops, "_is_plain", lambda x, plain=plain: plain):
            loss = F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()
