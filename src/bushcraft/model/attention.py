"""Attention over segments: masks are data, never matrices.

What computes it follows from the device: on the CPU products and flash calls by piece, on CUDA the flash kernels for
packed sequences, and FlexAttention for what they cannot do.

Shapes: B rows, S query positions, T key positions, H query heads, K key/value heads, E head width, N segments,
P pieces.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.model import attention_varlen
from bushcraft.model.attention_cpu import segment_attention
from bushcraft.model.attention_flex import flex_segment_attention
from bushcraft.model.attention_pieces import n_scores


@dataclass(frozen=True)
class Segments:
    """The packed pieces of a batch, (N,) int32 each, sorted by (row, start); they tile each row wholly."""

    row: Tensor
    start: Tensor
    prefix_length: Tensor
    """Positions at the beginning of a segment that see each other both ways; 0 for causal."""
    length: Tensor

    def positions(self, n_rows: int, width: int) -> Tensor:
        """Each position's place in its own segment, (B, S) int64."""
        begins = self.row.long() * width + self.start
        return (torch.arange(n_rows * width) - begins.repeat_interleave(self.length.long())).view(n_rows, width)


@dataclass(frozen=True)
class Mask:
    """What may be attended to: rectangles of queries × keys, whole or with a causal lower right edge.

    Every query lies in one piece at most; one that lies in none attends to nothing and gives zeros.
    """

    pieces: Tensor
    """(P, 7) int64 on the CPU: row of the queries, first query, queries, row of the keys, first key, keys, causal.
    In a causal piece the last query sees all keys, and each one before it one key less."""
    window: int | None = None
    """A query sees only keys that are fewer places than this away from its own, which is the key as far from the end
    of the piece's keys as the query is from the end of its queries; None for all."""

    def n_scores(self) -> int:
        """Pairs of a query and a key that it sees: what attention costs."""
        return n_scores(self.pieces, self.window)


def prefix_mask(segments: Segments) -> Mask:
    """Each position sees what comes before it in its segment; positions of the prefix see all of the prefix.

    Where the prefix is empty this is causal attention. Source: Raffel et al. 2020 (arXiv:1910.10683), section 3.2.1.
    """
    row, start, prefix, length = segments.row, segments.start, segments.prefix_length, segments.length
    return Mask(
        torch.cat(
            [
                _pieces(row, start, prefix, row, start, prefix, causal=False),
                _pieces(row, start + prefix, length - prefix, row, start, length, causal=True),
            ]
        )
    )


def bidirectional_mask(segments: Segments) -> Mask:
    """Each position sees all of its segment."""
    row, start, length = segments.row, segments.start, segments.length
    return Mask(_pieces(row, start, length, row, start, length, causal=False))


def cross_mask(queries: Segments, keys: Segments) -> Mask:
    """Each position of the n-th segment of the queries sees all of the n-th segment of the keys."""
    assert len(queries.row) == len(keys.row), "a segment of the decoder belongs to one of the encoder"
    return Mask(_pieces(queries.row, queries.start, queries.length, keys.row, keys.start, keys.length, causal=False))


def _pieces(*columns: Tensor, causal: bool) -> Tensor:
    """Rows of `Mask.pieces`, without those that hold no score."""
    pieces = torch.stack([*columns, torch.full_like(columns[0], causal)], dim=1).long()
    return pieces[(pieces[:, 2] > 0) & (pieces[:, 5] > 0)]


def attend(
    q_BSHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    mask: Mask,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Softmax attention inside of the mask's pieces: (B, S, H, E).

    Scores are q · k times `scale` (E**-0.5 by default); a soft cap c makes them c * tanh(score / c) (Gemma 2,
    arXiv:2408.00118).
    Query head h reads key/value head h * K // H (Ainslie et al. 2023, arXiv:2305.13245).
    """
    scale = q_BSHE.shape[-1] ** -0.5 if scale is None else scale
    if q_BSHE.device.type == "cpu":
        out: Tensor = segment_attention(q_BSHE, k_BTKE, v_BTKE, mask.pieces, scale, mask.window, soft_cap)[0]
    elif soft_cap is None and attention_varlen.takes(q_BSHE):
        out = attention_varlen.varlen_attention(q_BSHE, k_BTKE, v_BTKE, mask.pieces, scale, mask.window)[0]
    else:
        out = flex_segment_attention(q_BSHE, k_BTKE, v_BTKE, mask.pieces, scale, mask.window, soft_cap)
    return out
