"""Keys and values of all earlier positions, kept for the next one.

Rows of different lengths end at the same place. So a step writes one slice, a window is a slice, and the places in
front of a row's first position stay hidden from the beginning to the end.

Shapes: B rows, T places, N packed positions of all rows, H query heads, K key/value heads, G query heads of one of
them, E head width.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the positions of several rows stand in a cache."""

    first: Tensor
    """The place of each row's first position, (B,)."""
    end: int
    """The place after what was packed, the same in all rows."""
    room: int
    """Places in all."""

    @classmethod
    def of(cls, lengths_B: Tensor, n_more: int) -> "Places":
        """Rows of those lengths, with `n_more` places after their common end."""
        end = int(lengths_B.max())
        return cls(end - lengths_B.long(), end, end + n_more)

    def of_rows(self, rows: Tensor) -> "Places":
        """The places of some of the rows."""
        return Places(self.first[rows], self.end, self.room)

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """Row and place of each position, (N,) each, where the rows stand one after the other."""
        lengths_B, device = self.end - self.first, self.first.device
        row_N = torch.arange(len(lengths_B), device=device).repeat_interleave(lengths_B)
        place_N = torch.arange(len(row_N), device=device) + (self.end - lengths_B.cumsum(0))[row_N]
        return row_N, place_N

    @cached_property
    def hidden(self) -> Tensor | None:
        """What to add to scores, (B, 1, 1, T): -inf in front of a row's first place; None where there is no such."""
        if not self.first.any():
            return None
        in_front_BT = torch.arange(self.room, device=self.first.device) < self.first[:, None]
        scores_BT = torch.zeros(in_front_BT.shape, device=in_front_BT.device)
        return scores_BT.masked_fill_(in_front_BT, -torch.inf)[:, None, None]


@dataclass
class Cache:
    """Keys and values of one layer's attention, (B, K, T, E) each; zeros where there are none yet."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, k_NKE: Tensor, v_NKE: Tensor, places: Places) -> "Cache":
        """The keys and values of packed rows at their places."""
        return cls(_scattered(k_NKE, places), _scattered(v_NKE, places))

    def put(self, k_BKE: Tensor, v_BKE: Tensor, place: int) -> None:
        """Keep what each row has at that place."""
        self.keys[:, :, place], self.values[:, :, place] = k_BKE, v_BKE

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def attend_to_cache(
    q_BHE: Tensor,
    cache: Cache,
    seen: slice,
    hidden_B11T: Tensor | None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """One query a row over the places that are `seen` and not hidden, (B, H * E): the numbers of `attention.attend`."""
    keys_BKTE, values_BKTE = cache.keys[:, :, seen], cache.values[:, :, seen]
    n_rows, n_kv_heads, _, width = keys_BKTE.shape
    q_BKGE = q_BHE.view(n_rows, n_kv_heads, -1, width) * (width**-0.5 if scale is None else scale)
    scores_BKGT = q_BKGE @ keys_BKTE.transpose(-1, -2)
    if soft_cap is not None:
        scores_BKGT = scores_BKGT.div_(soft_cap).tanh_().mul_(soft_cap)
    if hidden_B11T is not None:
        scores_BKGT += hidden_B11T[..., seen]
    return (scores_BKGT.softmax(-1) @ values_BKTE).flatten(1)


def _scattered(x_NKE: Tensor, places: Places) -> Tensor:
    row_N, place_N = places.packed
    x_BKTE = x_NKE.new_zeros(len(places.first), x_NKE.shape[1], places.room, x_NKE.shape[2])
    x_BKTE[row_N, :, place_N] = x_NKE
    return x_BKTE
