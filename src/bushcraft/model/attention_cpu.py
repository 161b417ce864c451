"""Attention on the CPU: torch's flash kernel, once for each segment, or once for all rows that are one segment.

One custom operator, so that autograd sees one node and a compiler one opaque call, however many segments
there are. The kernel keeps the log of the softmax's denominator for the backward pass, never builds a mask,
and shares key/value heads among query heads by itself.

Shapes: B rows, S positions, H query heads, K key/value heads, E head width, N segments, n rows of a call,
L positions of a call.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.library.custom_op("bushcraft::segment_attention", mutates_args=())
def segment_attention(q_BSHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention inside of segments: output (B, S, H, E) and log-sum-exp (B, S, H), in fp32.

    `bounds` (N, 3): row, start, length of each segment; they tile the rows.
    """
    out = torch.empty_like(q_BSHE, memory_format=torch.contiguous_format)
    lse = q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32)
    for where in _calls(bounds, q_BSHE.shape[1]):
        q, k, v = _cut(q_BSHE, where), _cut(k_BSKE, where), _cut(v_BSKE, where)
        o, logsumexp = _forward(q, k, v, 0.0, True)
        out[where] = o.transpose(1, 2)
        lse[where] = logsumexp.transpose(1, 2)
    return out, lse


@segment_attention.register_fake
def _(q_BSHE: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q_BSHE, memory_format=torch.contiguous_format)
    return out, q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32)


@torch.library.custom_op("bushcraft::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    d_out: Tensor, q_BSHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, bounds: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q_BSHE, k_BSKE, v_BSKE))
    for where in _calls(bounds, q_BSHE.shape[1]):
        q, k, v = _cut(q_BSHE, where), _cut(k_BSKE, where), _cut(v_BSKE, where)
        o, logsumexp = _cut(out, where), lse[where].transpose(1, 2)
        grads = _backward(_cut(d_out, where), q, k, v, o, logsumexp, 0.0, True)
        for total, grad in zip((dq, dk, dv), grads, strict=True):
            total[where] = grad.transpose(1, 2)
    return dq, dk, dv


@_segment_attention_backward.register_fake
def _(_: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3])
    return dq, dk, dv


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, d_out: Tensor, _d_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    dq, dk, dv = _segment_attention_backward(d_out, *ctx.saved_tensors)  # type: ignore[attr-defined]
    return dq, dk, dv, None


segment_attention.register_autograd(_differentiate, setup_context=_save)

Where = tuple[slice | Tensor, slice]
"""Rows and positions of some segments of one length that one call can take."""


def _calls(bounds: Tensor, width: int) -> Iterator[Where]:
    """Rows that are one segment are taken together, any other segment by itself."""
    whole = bounds[:, 2] == width
    if bool(whole.all()):
        yield slice(None), slice(None)
        return
    if bool(whole.any()):
        yield bounds[whole, 0], slice(None)
    for row, start, length in bounds[~whole].tolist():
        yield slice(row, row + 1), slice(start, start + length)


def _cut(x_BSHE: Tensor, where: Where) -> Tensor:
    """The segments as the kernel wants them: (n, H, L, E)."""
    return x_BSHE[where].transpose(1, 2)
