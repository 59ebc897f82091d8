"""What the blocks of NanoLlama compute, in few passes over memory.

Eager torch makes one pass for each operation, and on a CPU most of a small model's step goes into
such passes. So what follows has gradients of its own there, which write where they belong.
Elsewhere, and under `torch.compile`, which joins passes by itself, plain operations are used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def project(
    x: Tensor, matrix: Tensor, gain: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """X (..., d_in), scaled by the gain (d_in,), times the matrix (d_out, d_in), plus the bias.

    With a member axis, of (members, d_out, d_in) and (members, d_in), the rows of x belong to the
    members in equal shares, one member after the other.
    """
    if gain is not None:
        matrix = matrix * gain[..., None, :]
    if matrix.ndim == 2:
        return F.linear(x, matrix, bias)
    shares = x.reshape(len(matrix), -1, x.shape[-1])
    if bias is None:
        out = torch.bmm(shares, matrix.mT)
    else:
        out = torch.baddbmm(bias[:, None], shares, matrix.mT)
    return out.view(*x.shape[:-1], matrix.shape[1])


def normalise(x: Tensor, epsilon: float) -> Tensor:
    """Divide x (..., d) by its root mean square; there is no gain.

    Gains scale the columns of the matrix that comes next: that product is over d^2 numbers, not
    over every token.
    """
    if _is_plain(x):
        return F.rms_norm(x, x.shape[-1:], None, epsilon)
    if not torch.is_grad_enabled():
        return x * _scale(x, epsilon)
    normalised: Tensor = _Normalise.apply(x, epsilon)
    return normalised


def turn(heads: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, the first two turned by their positions' angles.

    heads: (batch, seq, heads, d_head), those of queries (`n_heads`), keys and values stacked. Each
        pair (i, i + d_head / 2) of a query or key is turned.
    cos, sin: (batch or 1, seq, 1, d_head); the first half of sin is negated.
    """
    kv_heads = (heads.shape[2] - n_heads) // 2
    if _is_plain(heads) or not torch.is_grad_enabled():
        turning, v = heads.split((n_heads + kv_heads, kv_heads), dim=2)
        q, k = _rotated(turning, cos, sin).split((n_heads, kv_heads), dim=2)
        return q, k, v
    q, k, v = _Turn.apply(heads, cos, sin, n_heads)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q (batch, seq, heads, d_head) over k and v (batch, held, kv_heads, d_head).

    mask: added to the scores, (batch, 1, seq, held); by default, tokens look at those before them.
    """
    # The backward pass of torch's kernel for CPUs takes several times as long in bfloat16.
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def swiglu(gate_up: Tensor) -> Tensor:
    """SiLU of the first half of the last axis, times the second half (Shazeer, 2002.05202)."""
    if _is_plain(gate_up) or not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    out: Tensor = _SwiGLU.apply(gate_up)
    return out


def _is_plain(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _scale(x: Tensor, epsilon: float) -> Tensor:
    """One over the root mean square of x (..., d), (..., 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return mean_square.add_(epsilon).rsqrt_()


class _Normalise(torch.autograd.Function):
    """`F.rms_norm` in a third of its passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = _scale(x, epsilon)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable  # `scale` is taken as a constant here
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # dL/dx = scale (g - y <g, y> / d), for d(scale)/dx = -scale^2 y / d.
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y)[..., None].div_(-y.shape[-1])
        return torch.addcmul(gradient, y, along).mul_(scale), None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


class _Turn(torch.autograd.Function):
    """`turn`, whose gradients for queries, keys and values are written side by side."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, n_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads = (heads.shape[2] - n_heads) // 2
        ctx.save_for_backward(cos, sin)
        ctx.dtype = heads.dtype
        turned = _swapped(heads[:, :, : n_heads + kv_heads], cos, sin, None, 1)
        return turned[:, :, :n_heads], turned[:, :, n_heads:], heads[:, :, -kv_heads:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        n_heads, kv_heads = (g.shape[2] for g in gradients[:2])
        batch, seq, _, d_head = gradients[0].shape
        whole = gradients[0].new_empty(batch, seq, n_heads + 2 * kv_heads, d_head)
        q, k, v = whole.split((n_heads, kv_heads, kv_heads), dim=2)
        _swapped(gradients[0], cos, sin, q, -1)
        _swapped(gradients[1], cos, sin, k, -1)
        v.copy_(gradients[2])
        return whole.to(ctx.dtype), None, None, None


def _swapped(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None, sign: int) -> Tensor:
    """`_rotated`, or with sign -1 its inverse, without a swapped copy of x."""
    out = torch.mul(x, cos, out=out)
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class _SwiGLU(torch.autograd.Function):
    """`swiglu`, whose gradients for both halves are written side by side."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate_up, active = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        whole = torch.empty_like(gate_up)
        for_gate, for_up = whole.chunk(2, dim=-1)
        torch.mul(gradient, active, out=for_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=for_gate)
        return whole
