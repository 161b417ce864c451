"""Attention on CUDA by the flash kernels for packed sequences of different lengths.

A mask is two calls at most, over queries that are disjoint: its causal pieces, whose edge the kernel too aligns to
the lower right, and its whole ones. Each call is told where its pieces begin (`cu_seqlens`), and reads queries and keys
in place where they lie side by side, and gathers them where they do not: of a packed prefix-LM the prefixes, then the
other queries, with all keys.

Windows are the kernel's own. It needs bf16 or fp16, and heads of a multiple of 8 up to 256.

Source: Dao 2023 (arXiv:2307.08691), and the kernel's arguments as in `torch.nn.attention.varlen`.

Shapes: B rows, S query positions, T key positions, H query heads, K key/value heads, E head width, P pieces, n pieces
of a call, N queries of a call; positions of all rows are numbered through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bushcraft.model.attention_pieces import flattened, narrower, packed, trimmed, unpacked

_forward: Callable[..., tuple[Tensor, ...]] = torch.ops.aten._flash_attention_forward
_backward: Callable[..., tuple[Tensor, ...]] = torch.ops.aten._flash_attention_backward

Places = slice | Tensor
"""Positions of a call: a range, or their numbers (int64)."""


def takes(q_BSHE: Tensor) -> bool:
    """Whether the kernel is made for this dtype and head width."""
    width = q_BSHE.shape[-1]
    return q_BSHE.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


@dataclass(frozen=True)
class Call:
    """What the kernel is told of some pieces."""

    queries: Places
    keys: Places
    cu_queries: Tensor
    """(n + 1,) int32 on the device: where each piece's queries begin, and the last ones end."""
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    causal: bool
    window: tuple[int, int]
    """Keys seen before and after the diagonal; -1 for all."""

    def arguments(self) -> tuple[Tensor, Tensor, int, int, float, bool]:
        """As the kernel takes them one after the other, without dropout."""
        causal = self.causal and self.window[0] == -1  # with a window the edge is a window of 0 keys ahead
        return self.cu_queries, self.cu_keys, self.max_queries, self.max_keys, 0.0, causal

    def options(self, scale: float) -> dict[str, Any]:
        """As the kernel takes them by name."""
        return {"scale": scale, "window_size_left": self.window[0], "window_size_right": self.window[1]}


@torch.library.custom_op("bushcraft::varlen_attention", mutates_args=())
def varlen_attention(
    q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, pieces: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attention inside of pieces (`attention.Mask`): output (B, S, H, E) and log-sum-exp (B, S, H), in fp32."""
    q, k, v = (_flat(x) for x in (q_BSHE, k_BTKE, v_BTKE))
    outs, lses = [], []
    for call in _calls_for(q_BSHE, k_BTKE, pieces, window):
        out, lse_HN, *_ = _forward(
            q[call.queries], k[call.keys], v[call.keys], *call.arguments(), False, **call.options(scale)
        )
        outs.append((call.queries, out))
        lses.append((call.queries, lse_HN.T))
    return _assembled(outs, q_BSHE), _assembled(lses, q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32))


@varlen_attention.register_fake
def _(q_BSHE: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q_BSHE, memory_format=torch.contiguous_format)
    return out, q_BSHE.new_empty(q_BSHE.shape[:3], dtype=torch.float32)


@torch.library.custom_op("bushcraft::varlen_attention_backward", mutates_args=())
def _varlen_attention_backward(
    d_out: Tensor,
    q_BSHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    out: Tensor,
    lse: Tensor,
    pieces: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    do, q, k, v, o, lse = (_flat(x) for x in (d_out, q_BSHE, k_BTKE, v_BTKE, out, lse))
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    dqs, dks, dvs = [], [], []
    for call in _calls_for(q_BSHE, k_BTKE, pieces, window):
        dq, dk, dv = _backward(
            do[call.queries],
            q[call.queries],
            k[call.keys],
            v[call.keys],
            o[call.queries],
            lse[call.queries].T.contiguous(),
            *call.arguments(),
            *no_dropout,
            **call.options(scale),
        )
        dqs.append((call.queries, dq))
        dks.append((call.keys, dk))
        dvs.append((call.keys, dv))
    return _assembled(dqs, q_BSHE), _assembled(dks, k_BTKE), _assembled(dvs, v_BTKE)


@_varlen_attention_backward.register_fake
def _(_: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3])
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, pieces, *ctx.scores = inputs
    ctx.save_for_backward(q, k, v, *output, pieces)


def _differentiate(ctx: Any, d_out: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _varlen_attention_backward(d_out, *ctx.saved_tensors, *ctx.scores)
    return dq, dk, dv, None, None, None


varlen_attention.register_autograd(_differentiate, setup_context=_save)


def _calls_for(q_BSHE: Tensor, k_BTKE: Tensor, pieces: Tensor, window: int | None) -> tuple[Call, ...]:
    """The calls of a mask, made once: its layers ask for them one after the other."""
    return _calls(packed(pieces), window, q_BSHE.shape[1], k_BTKE.shape[1], q_BSHE.device)


@lru_cache(maxsize=16)
def _calls(pieces: bytes, window: int | None, width: int, key_width: int, device: torch.device) -> tuple[Call, ...]:
    columns = flattened(trimmed(unpacked(pieces), window), width, key_width)
    parts = (columns[columns[:, 4] == causal] for causal in (0, 1))
    return tuple(_call(part, window, device) for part in parts if len(part))


def _call(columns: Tensor, window: int | None, device: torch.device) -> Call:
    """Of pieces of one kind: first query, queries, first key, keys, causal."""
    first_query, n_queries, first_key, n_keys, causal = columns.unbind(1)
    max_queries, max_keys, is_causal = int(n_queries.max()), int(n_keys.max()), bool(causal[0])
    back = -1
    if narrower(window, max_queries, max_keys) is not None:
        assert window is not None
        back = window - 1
        max_keys = max(max_keys, window)  # the kernel takes a window as large as max_keys for none
    return Call(
        queries=_places(first_query, n_queries, device),
        keys=_places(first_key, n_keys, device),
        cu_queries=_on(_cumulative(n_queries).int(), device),
        cu_keys=_on(_cumulative(n_keys).int(), device),
        max_queries=max_queries,
        max_keys=max_keys,
        causal=is_causal,
        window=(back, 0 if is_causal else back),
    )


def _places(begins: Tensor, lengths: Tensor, device: torch.device) -> Places:
    """The positions of ranges, one range after the other."""
    if torch.equal(begins[1:], (begins + lengths)[:-1]):
        return slice(int(begins[0]), int(begins[-1] + lengths[-1]))
    offsets = begins - _cumulative(lengths)[:-1]
    return _on(torch.arange(int(lengths.sum())) + offsets.repeat_interleave(lengths), device)


def _cumulative(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _on(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)


def _flat(x: Tensor) -> Tensor:
    """(B, S, …) → (B * S, …), contiguous, as the kernel wants its last axis to be."""
    return x.flatten(0, 1).contiguous()


def _assembled(parts: Sequence[tuple[Places, Tensor]], like: Tensor) -> Tensor:
    """The sum of parts at their places, in the shape of `like`: keys of a prefix are in two calls."""
    everything = slice(0, like.shape[:2].numel())
    if len(parts) == 1 and isinstance(parts[0][0], slice) and parts[0][0] == everything:
        return parts[0][1].contiguous().view(like.shape)
    total = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for places, part in parts:
        if isinstance(places, slice):
            total.flatten(0, 1)[places] += part
        else:
            total.flatten(0, 1).index_add_(0, places, part)
    return total
