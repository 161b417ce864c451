"""Attention over segments: masks are data, never matrices.

Shapes: B rows, S query positions, T key positions, H query heads, K key/value heads, E head width, N segments,
P pieces.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.model.attention_cpu import segment_attention


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

    Every query row lies in one piece at most; one that lies in none attends to nothing and gives zeros.
    """

    pieces: Tensor
    """(P, 6) int64 on the CPU: row, first query, queries, first key, keys, causal. In a causal piece the last
    query sees all keys, and each one before it one key less."""


def causal_mask(segments: Segments) -> Mask:
    """Each position sees itself and what comes before it in its segment."""
    return Mask(_pieces(segments.row, segments.start, segments.length, segments.start, segments.length, causal=True))


def _pieces(row: Tensor, q_start: Tensor, q_length: Tensor, k_start: Tensor, k_length: Tensor, causal: bool) -> Tensor:
    return torch.stack([row, q_start, q_length, k_start, k_length, torch.full_like(row, causal)], dim=1).long()


def attend(q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask: Mask) -> Tensor:
    """Softmax attention, scaled by E**-0.5, inside of the mask's pieces: (B, S, H, E).

    Query head h reads key/value head h * K // H (Ainslie et al. 2023, arXiv:2305.13245).
    """
    out: Tensor = segment_attention(q_BSHE, k_BTKE, v_BTKE, mask.pieces)[0]
    return out
