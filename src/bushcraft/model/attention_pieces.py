"""Arithmetic over the pieces of a mask: which keys a query sees, and how many scores that makes.

In a piece of L queries and T keys, query a sees the keys first ≤ b < end with, for the diagonal c = a + T - L,

    first = max(0, c - window + 1)        end = min(T, c + 1) if causal, else min(T, c + window)

so both ends move by one key a query at most, and what a run of queries sees is one range of keys.

Shapes: P pieces, columns as in `attention.Mask.pieces`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What a piece's scores are, and which of them count."""

    causal: bool
    scale: float
    """Factor of queries times keys."""
    window: int | None = None
    soft_cap: float | None = None
    """Of c: the score s becomes c * tanh(s / c) (Gemma 2, arXiv:2408.00118, section 2)."""

    def reach(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """How many keys up to the diagonal a query sees, itself included, and how many from there on."""
        everything = max(n_queries, n_keys)
        width = everything if self.window is None else self.window
        return width, 1 if self.causal else width


def n_scores(pieces: Tensor, window: int | None) -> int:
    """Pairs of a query and a key that it sees."""
    _, _, n_queries, _, _, n_keys, causal = trimmed(pieces, window).unbind(1)
    width = _windows(n_queries, n_keys, window)
    reach = torch.where(causal.bool(), 1, width)  # end - c
    begin = n_keys - n_queries  # the diagonal of the first query
    ends = _steps(n_keys + reach) - _steps(begin + reach) - _steps(reach) + _steps(begin + reach - n_keys)
    firsts = _steps(n_keys - width + 1) - _steps(begin - width + 1)
    return int((ends - firsts).sum())


def trimmed(pieces: Tensor, window: int | None) -> Tensor:
    """Pieces without the queries at their beginning that see nothing, and the keys there that nobody sees.

    Pieces of no score are left out.
    """
    pieces = pieces[(pieces[:, 2] > 0) & (pieces[:, 5] > 0)]
    if window is None:
        return pieces
    q_row, q_start, n_queries, k_row, k_start, n_keys, causal = pieces.unbind(1)
    blind = (n_queries - n_keys - window + 1).clamp(min=0)
    unseen = (n_keys - n_queries - window + 1).clamp(min=0)
    columns = (q_row, q_start + blind, n_queries - blind, k_row, k_start + unseen, n_keys - unseen, causal)
    return torch.stack(columns, 1)


def narrower(window: int | None, n_queries: int, n_keys: int) -> int | None:
    """The window, or None where it hides nothing of a piece."""
    return None if window is None or window >= max(n_queries, n_keys) else window


def _windows(n_queries: Tensor, n_keys: Tensor, window: int | None) -> Tensor:
    """The window as a number for each piece: one that hides nothing where there is none."""
    everything = torch.maximum(n_queries, n_keys)
    return everything if window is None else everything.clamp(max=window)


def _steps(n: Tensor) -> Tensor:
    """The sum of max(0, n - i) over i = 1, 2, …"""
    n = n.clamp(min=0)
    return n * (n - 1) // 2
