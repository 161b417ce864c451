"""Collectives that a gradient passes through: each is the transpose of another.

They are functional collectives, which a compiler can trace. Shapes: n ranks of the group, along whose `dim` a tensor is
cut; heads are the second axis from the end, positions the third.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

Group = dist.ProcessGroup


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """The parts of all ranks one after the other; its gradient is summed over the ranks, each of which keeps its
    part."""
    return _Gather.apply(x, dim, group)  # type: ignore[no-untyped-call, no-any-return]


def reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """The sum over the ranks, of which each keeps its part; its gradient is gathered."""
    return _ReduceScatter.apply(x, dim, group)  # type: ignore[no-untyped-call, no-any-return]


def heads_to_positions(x_BSHE: Tensor, group: Group) -> Tensor:
    """(B, S, H/n, E) → (B, S/n, H, E): give up the other positions of some heads for the other heads of some
    positions."""
    return _Exchange.apply(x_BSHE, -3, -2, group)  # type: ignore[no-untyped-call, no-any-return]


def positions_to_heads(x_BSHE: Tensor, group: Group) -> Tensor:
    """(B, S/n, H, E) → (B, S, H/n, E), the way back (Jacobs et al. 2023, DeepSpeed Ulysses, arXiv:2309.14509)."""
    return _Exchange.apply(x_BSHE, -2, -3, group)  # type: ignore[no-untyped-call, no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(d_out, ctx.dim, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        return _gather(d_out, ctx.dim, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    """Cut along one axis, joined along another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Tensor:
        ctx.axes, ctx.group = (cut, join), group
        return _exchange(x, cut, join, group)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None]:
        cut, join = ctx.axes
        return _exchange(d_out, join, cut, ctx.group), None, None, None


def _gather(x: Tensor, dim: int, group: Group) -> Tensor:
    parts = _wait(functional.all_gather_single(x.contiguous(), 0, group))
    return torch.cat(parts.chunk(group.size()), dim) if dim else parts


def _reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    parts = torch.cat(x.chunk(group.size(), dim)) if dim else x.contiguous()
    return _wait(functional.reduce_scatter_single(parts, "sum", 0, group))


def _exchange(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    parts = torch.stack(x.chunk(group.size(), cut))
    received = _wait(functional.all_to_all_single(parts, None, None, group))
    return torch.cat(received.unbind(0), join)


def _wait(x: Tensor) -> Tensor:
    found: Tensor = functional.wait_tensor(x)  # type: ignore[no-untyped-call]
    return found
