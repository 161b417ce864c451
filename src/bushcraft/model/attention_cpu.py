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

import torch
from torch import Tensor

from bushcraft.model import attention_blocks, attention_flash

BY_BLOCKS = {torch.bfloat16: range(192, 2049), torch.float32: range(384, 1025)}
"""Keys of a piece for which products by blocks beat the flash kernel: in bf16 by up to 2 in the backward pass. It
has less to do for each call, and keeps what it works on in the cache where there are more keys."""


@torch.library.custom_op("bushcraft::segment_attention", mutates_args=())
def segment_attention(q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Attention inside of pieces (`attention.Mask`): output (B, S, H, E) and log-sum-exp (B, S, H), in fp32."""
    out = torch.zeros_like(q_BSHE, memory_format=torch.contiguous_format)
    lse = q_BSHE.new_zeros(q_BSHE.shape[:3], dtype=torch.float32)
    for piece in _calls(pieces):
        q, k, v = q_BSHE[piece.queries], k_BTKE[piece.keys], v_BTKE[piece.keys]
        kernel = _kernel(k)
        out[piece.queries], lse[piece.queries] = kernel.forward(q, k, v, piece.causal)
    return out, lse


@segment_attention.register_fake
def _(q_BSHE: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q_BSHE, memory_format=torch.contiguous_format)
    return out, q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32)


@torch.library.custom_op("bushcraft::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    d_out: Tensor, q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, pieces: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q_BSHE, k_BTKE, v_BTKE))
    for piece in _calls(pieces):
        q, k, v = q_BSHE[piece.queries], k_BTKE[piece.keys], v_BTKE[piece.keys]
        kernel = _kernel(k)
        found = kernel.backward(d_out[piece.queries], q, k, v, out[piece.queries], lse[piece.queries], piece.causal)
        for total, where, part in zip((dq, dk, dv), (piece.queries, piece.keys, piece.keys), found, strict=True):
            total[where] += part  # the keys of a prefix are in two pieces
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


def _kernel(k_nTKE: Tensor) -> ModuleType:
    by_blocks = k_nTKE.shape[1] in BY_BLOCKS.get(k_nTKE.dtype, ())
    return attention_blocks if by_blocks else attention_flash


@dataclass(frozen=True)
class _Call:
    """Equal pieces of some rows, which one call can take; the places index (rows, positions)."""

    queries: tuple[slice | Tensor, slice]
    keys: tuple[slice | Tensor, slice]
    causal: bool


def _calls(pieces: Tensor) -> Iterator[_Call]:
    """Pieces that differ in nothing but their rows are taken together."""

    def shape(piece: list[int]) -> list[int]:
        return [*piece[1:3], *piece[4:]]

    by_shape = sorted(pieces.tolist(), key=lambda piece: (shape(piece), piece))
    for (q_start, q_length, k_start, k_length, causal), group in groupby(by_shape, key=shape):
        q_rows, k_rows = zip(*((piece[0], piece[3]) for piece in group), strict=True)
        queries, keys = slice(q_start, q_start + q_length), slice(k_start, k_start + k_length)
        yield _Call((_index(q_rows), queries), (_index(k_rows), keys), bool(causal))


def _index(rows: tuple[int, ...]) -> slice | Tensor:
    """A view of consecutive rows, a copy of others."""
    consecutive = rows == tuple(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if consecutive else torch.tensor(rows)
