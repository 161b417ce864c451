"""Arithmetic over the pieces of a mask: which keys a query sees, and how many scores that makes.

In a piece of L queries and T keys, query a sees the keys first ≤ b < end with, for the diagonal c = a + T - L,

    first = max(0, c - window + 1)        end = min(T, c + 1) if causal, else min(T, c + window)

so both ends move by one key a query at most, and what a run of queries sees is one range of keys.

Shapes: P pieces, columns as in `attention.Mask.pieces`.
"""

from dataclasses import dataclass

import numpy as np
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


def flattened(pieces: Tensor, width: int, key_width: int) -> Tensor:
    """(P, 5) in the order of the queries: first query, queries, first key, keys, causal; all rows numbered through."""
    q_row, q_start, n_queries, k_row, k_start, n_keys, causal = pieces.unbind(1)
    columns = torch.stack([q_row * width + q_start, n_queries, k_row * key_width + k_start, n_keys, causal], 1)
    return columns[columns[:, 0].argsort()]


def key_bounds(columns: Tensor, window: int | None, n_positions: int) -> tuple[Tensor, Tensor]:
    """First key that each position of all rows sees, and the one after the last, (n_positions,); 0 and 0 for none.

    `columns` are those of `flattened`.
    """
    first_query, n_queries, first_key, n_keys, causal = columns.repeat_interleave(columns[:, 1], dim=0).unbind(1)
    at = torch.arange(len(first_query)) - (columns[:, 1].cumsum(0) - columns[:, 1]).repeat_interleave(columns[:, 1])
    diagonal = at + n_keys - n_queries
    width = _windows(n_queries, n_keys, window)
    first, end = torch.zeros(2, n_positions, dtype=torch.int64)
    first[first_query + at] = first_key + (diagonal - width + 1).clamp(min=0)
    end[first_query + at] = first_key + torch.minimum(n_keys, diagonal + torch.where(causal.bool(), 1, width))
    return first, end


def packed(pieces: Tensor) -> bytes:
    """Pieces as a value that a cache can hold to be equal."""
    return pieces.numpy().tobytes()


def unpacked(pieces: bytes) -> Tensor:
    """The pieces of `packed`."""
    return torch.from_numpy(np.frombuffer(pieces, dtype=np.int64).reshape(-1, 7).copy())


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
