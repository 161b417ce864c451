"""Rows of packed tokens: what a model reads.

Shapes: B rows, S positions.
"""

from dataclasses import dataclass

from torch import Tensor

from bushcraft.model.attention import Segments


@dataclass(frozen=True)
class Packed:
    """One side of a model's input."""

    tokens: Tensor
    """(B, S) int64."""
    segments: Segments
    """The pieces in each row; attention stays inside of them."""
