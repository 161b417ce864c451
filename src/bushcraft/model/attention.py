"""Attention over segments: masks are data, never matrices.

Shapes: B rows, S positions, H query heads, K key/value heads, E head width, N segments.
"""

from dataclasses import dataclass
from enum import Enum

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


class Pattern(Enum):
    """Which keys of its own segment a query sees."""

    CAUSAL = "causal"


@dataclass(frozen=True)
class Mask:
    """What may be attended to: a pattern inside of segments."""

    pattern: Pattern
    bounds: Tensor
    """(N, 3) int64 on the CPU: row, start, length; rows of one segment each are one batched call."""


def causal_mask(segments: Segments) -> Mask:
    """Each position sees itself and what comes before it in its segment."""
    return Mask(Pattern.CAUSAL, torch.stack([segments.row, segments.start, segments.length], dim=1).long())


def attend(q_BSHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, mask: Mask) -> Tensor:
    """Softmax attention, scaled by E**-0.5, inside of the mask's segments: (B, S, H, E).

    Query head h reads key/value head h * K // H (Ainslie et al. 2023, arXiv:2305.13245).
    """
    assert mask.pattern is Pattern.CAUSAL
    out: Tensor = segment_attention(q_BSHE, k_BSKE, v_BSKE, mask.bounds)[0]
    return out
