"""Attention on the CPU, piece by piece of the mask, by torch's flash kernel or by blocks of matrix products.

One custom operator, so that autograd sees one node and a compiler one opaque call, however many pieces
there are. Both kernels keep the log of the softmax's denominator for the backward pass, never build a mask
of a whole piece, and share key/value heads among query heads by themselves.

Shapes: B rows, S query positions, T key positions, H query heads, K key/value heads, E head width, P pieces,
n rows of a call, L queries of a call.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bushcraft.model import attention_blocks, attention_flash
from bushcraft.model.attention_pieces import Rule, narrower, trimmed

BF16, FP32 = torch.bfloat16, torch.float32
FORWARD_BY_BLOCKS = {(BF16, True): range(192, 641), (FP32, True): range(384, 641)}
BACKWARD_BY_BLOCKS = {
    (BF16, True): range(64, 2049),
    (BF16, False): range(64, 2049),
    (FP32, True): range(384, 641),
}
"""Keys of a piece, by dtype and whether it is causal, for which products by blocks beat the flash kernel: in bf16 by up
to 2 in the backward pass. It has less to do for each call, and keeps what it works on in the cache where there are
more keys."""

Places = tuple[slice | Tensor, slice]
"""Rows, and positions of each."""


@torch.library.custom_op("bushcraft::segment_attention", mutates_args=())
def segment_attention(
    q_BSHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    pieces: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention inside of pieces (`attention.Mask`): output (B, S, H, E) and log-sum-exp (B, S, H), in fp32."""
    q_BSHE, k_BTKE, v_BTKE = map(_heads_in_one_piece, (q_BSHE, k_BTKE, v_BTKE))
    out = torch.zeros_like(q_BSHE, memory_format=torch.contiguous_format)
    lse = q_BSHE.new_zeros(q_BSHE.shape[:3], dtype=torch.float32)
    for call in _calls(pieces, scale, window, soft_cap):
        q, k, v = q_BSHE[call.queries], k_BTKE[call.keys], v_BTKE[call.keys]
        kernel = _kernel(k, call.rule, FORWARD_BY_BLOCKS)
        out[call.queries], lse[call.queries] = kernel.forward(q, k, v, call.rule)
    return out, lse


@segment_attention.register_fake
def _(q_BSHE: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q_BSHE, memory_format=torch.contiguous_format)
    return out, q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32)


@torch.library.custom_op("bushcraft::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    d_out: Tensor,
    q_BSHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    out: Tensor,
    lse: Tensor,
    pieces: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_out, q_BSHE, k_BTKE, v_BTKE = map(_heads_in_one_piece, (d_out, q_BSHE, k_BTKE, v_BTKE))
    dq, dk, dv = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q_BSHE, k_BTKE, v_BTKE))
    for call in _calls(pieces, scale, window, soft_cap):
        q, k, v = q_BSHE[call.queries], k_BTKE[call.keys], v_BTKE[call.keys]
        kernel = _kernel(k, call.rule, BACKWARD_BY_BLOCKS)
        found = kernel.backward(d_out[call.queries], q, k, v, out[call.queries], lse[call.queries], call.rule)
        for total, where, part in zip((dq, dk, dv), (call.queries, call.keys, call.keys), found, strict=True):
            _add(total, where, part)  # the keys of a prefix are in two pieces
    return dq, dk, dv


@_segment_attention_backward.register_fake
def _(_: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3])
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, pieces, *ctx.scores = inputs
    ctx.save_for_backward(q, k, v, *output, pieces)


def _differentiate(ctx: Any, d_out: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _segment_attention_backward(d_out, *ctx.saved_tensors, *ctx.scores)
    return dq, dk, dv, None, None, None, None


segment_attention.register_autograd(_differentiate, setup_context=_save)


def _heads_in_one_piece(x: Tensor) -> Tensor:
    """`x` with each head's numbers side by side: the flash kernel reads them so, whatever their stride."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _kernel(k_nTKE: Tensor, rule: Rule, by_blocks: dict[tuple[torch.dtype, bool], range]) -> ModuleType:
    """Either can follow the other, for both keep the same log-sum-exp."""
    only_blocks = rule.window is not None or rule.soft_cap is not None
    faster = k_nTKE.shape[1] in by_blocks.get((k_nTKE.dtype, rule.causal), ())
    return attention_blocks if only_blocks or faster else attention_flash


@dataclass(frozen=True)
class _Call:
    """Equal pieces of some rows, which one call can take."""

    queries: Places
    keys: Places
    rule: Rule


def _calls(pieces: Tensor, scale: float, window: int | None, soft_cap: float | None) -> Iterator[_Call]:
    """Pieces that differ in nothing but their rows are taken together."""

    def shape(piece: list[int]) -> list[int]:
        return [*piece[1:3], *piece[4:]]

    by_shape = sorted(trimmed(pieces, window).tolist(), key=lambda piece: (shape(piece), piece))
    for (q_start, q_length, k_start, k_length, causal), group in groupby(by_shape, key=shape):
        q_rows, k_rows = zip(*((piece[0], piece[3]) for piece in group), strict=True)
        queries, keys = slice(q_start, q_start + q_length), slice(k_start, k_start + k_length)
        rule = Rule(bool(causal), scale, narrower(window, q_length, k_length), soft_cap)
        yield _Call((_index(q_rows), queries), (_index(k_rows), keys), rule)


def _index(rows: tuple[int, ...]) -> slice | Tensor:
    """A view of consecutive rows, a copy of others."""
    consecutive = rows == tuple(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if consecutive else torch.tensor(rows)


def _add(total: Tensor, where: Places, part: Tensor) -> None:
    """total[where] += part, also where a row is named twice."""
    rows, positions = where
    if isinstance(rows, slice):
        total[where] += part
    else:
        total[:, positions].index_add_(0, rows, part)
