"""Elementwise layers as single autograd nodes: they are bound by memory, so each byte is touched once.

Every backward is written out below its forward and tested against autograd. Shapes: D the last axis.
"""

from typing import Any

import torch
from torch import Tensor


class RMSNormFunction(torch.autograd.Function):
    """y = x / rms(x) * weight over the last axis, computed in fp32, given in `dtype`.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (x * scale).mul_(weight)
        return out.to(dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        d_y, x_hat = d_y.float(), x * scale
        d_weight = torch.linalg.vecdot(d_y.flatten(0, -2), x_hat.flatten(0, -2), dim=0)
        d_hat = d_y * weight
        mean = torch.linalg.vecdot(d_hat, x_hat).unsqueeze(-1).div_(x.shape[-1])
        return d_hat.sub_(x_hat.mul_(mean)).mul_(scale).to(x.dtype), d_weight, None, None


class SwiGLUFunction(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202); keeps its inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate = torch.ops.aten.silu_backward(d_y * up, gate)
        return d_gate, torch.nn.functional.silu(gate).mul_(d_y)


class GeGLUFunction(torch.autograd.Function):
    """gelu(gate) * up with the tanh approximation (Shazeer 2020, arXiv:2002.05202); keeps its inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate = torch.ops.aten.gelu_backward(d_y * up, gate, approximate="tanh")
        return d_gate, torch.nn.functional.gelu(gate, approximate="tanh").mul_(d_y)


class ReLU2Function(torch.autograd.Function):
    """relu(x)² (So et al. 2021, arXiv:2109.08668); keeps relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = torch.nn.functional.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        d_x: Tensor = positive.mul(2).mul_(d_y)
        return d_x


class RotaryFunction(torch.autograd.Function):
    """Rotate pairs (i, i + E/2) of each head by its position's angle; the backward rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(d_y, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (…, heads, E) by angles (…, 1, E/2)."""
    pairs = x.view(*x.shape[:-1], 2, -1)
    left, right = pairs.unbind(-2)
    out: Tensor = pairs * cos.unsqueeze(-2)
    out.select(-2, 0).addcmul_(right, sin, value=-1)
    out.select(-2, 1).addcmul_(left, sin)
    return out.flatten(-2).to(x.dtype)
