"""Held-out bits per byte: every document by itself, every byte of it scored, its end included.

A long document is read through windows of the training length. Each window but the first begins with tokens
that were scored before, as context. The windows of many documents are packed into rows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bushcraft.data.manifest import DatasetManifest, PackTable
from bushcraft.model.attention import Segments
from bushcraft.objectives.batch import Batch
from bushcraft.store.depot import Depot
from bushcraft.store.pack import PackReader

CONTEXT = 0.25
"""The share of a later window that only gives context; more costs time and gains little."""
PACK_AT_ONCE = 1024
"""Windows that are packed together."""


@dataclass(frozen=True)
class Score:
    """How well documents are predicted."""

    nats: float
    n_bytes: int
    n_tokens: int
    n_documents: int

    @property
    def bits_per_byte(self) -> float | None:
        """None where there was nothing to score."""
        return self.nats / math.log(2) / self.n_bytes if self.n_bytes else None


@dataclass(frozen=True)
class _Window:
    tokens: NDArray[Any]
    """Inputs and, one further, targets."""
    n_context: int
    """Targets at its beginning that another window scores."""

    @property
    def length(self) -> int:
        return len(self.tokens) - 1


def heldout_documents(
    depot: Depot, manifest: DatasetManifest, max_bytes: int | None = None
) -> Iterator[tuple[str, NDArray[Any], int]]:
    """Held-out documents (name, tokens with the separator first, text bytes): the first ones, about `max_bytes`."""
    taken = 0
    table = PackTable(depot, manifest.splits["heldout"])
    for pack in (table[i] for i in range(len(table))):
        for name, tokens, n_bytes in PackReader(depot, pack).documents():
            yield name, tokens, n_bytes
            taken += n_bytes
            if max_bytes is not None and taken >= max_bytes:
                return


def score(
    nats: Callable[[Batch], Tensor],
    documents: Iterator[tuple[str, NDArray[Any], int]],
    separator: int,
    width: int,
    n_rows: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Score:
    """Score documents in batches of `n_rows` × `width`; `nats` gives a batch's summed loss, weights applied.

    `progress` hears how many bytes are read so far.
    """
    total, n_bytes, n_tokens, n_documents = 0.0, 0, 0, 0
    pending: list[_Window] = []
    for _, tokens, size in documents:
        pending += _windows(np.append(tokens, tokens.dtype.type(separator)), width)
        n_bytes, n_tokens, n_documents = n_bytes + size, n_tokens + len(tokens), n_documents + 1
        if len(pending) >= PACK_AT_ONCE:
            total += _score_windows(nats, pending, width, n_rows)
            pending = []
            progress(n_bytes)
    total += _score_windows(nats, pending, width, n_rows)
    progress(n_bytes)
    return Score(total, n_bytes, n_tokens, n_documents)


def _windows(tokens: NDArray[Any], width: int) -> list[_Window]:
    """Windows that score each target of a document once."""
    windows = [_Window(tokens[: width + 1], 0)]
    n_context = int(width * CONTEXT)
    scored = width
    while scored < len(tokens) - 1:
        begin = scored - n_context
        windows.append(_Window(tokens[begin : begin + width + 1], n_context))
        scored = begin + width
    return windows


def _score_windows(nats: Callable[[Batch], Tensor], windows: list[_Window], width: int, n_rows: int) -> float:
    rows = _pack(windows, width)
    batches = (rows[i : i + n_rows] for i in range(0, len(rows), n_rows))
    return sum(float(nats(_batch(batch, width, n_rows))) for batch in batches)


def _pack(windows: list[_Window], width: int) -> list[list[_Window]]:
    """First-fit decreasing: rows that hold at most `width` tokens each."""
    rows: list[list[_Window]] = []
    room: list[int] = []
    for window in sorted(windows, key=lambda w: -w.length):
        row = next((r for r, free in enumerate(room) if free >= window.length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(window)
        room[row] -= window.length
    return rows


def _batch(rows: list[list[_Window]], width: int, n_rows: int) -> Batch:
    inputs, targets = np.zeros((n_rows, width), np.int64), np.zeros((n_rows, width), np.int64)
    weights = np.zeros((n_rows, width), np.float32)
    segments: list[tuple[int, int, int]] = []
    for r in range(n_rows):
        at = 0
        for window in rows[r] if r < len(rows) else []:
            end = at + window.length
            inputs[r, at:end], targets[r, at:end] = window.tokens[:-1], window.tokens[1:]
            weights[r, at + window.n_context : end] = 1
            segments.append((r, at, window.length))
            at = end
        if at < width:
            segments.append((r, at, width - at))
    row, start, length = torch.tensor(segments, dtype=torch.int32).T.contiguous()
    return Batch(
        tokens=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        loss_weights=torch.from_numpy(weights),
        segments=Segments(row=row, start=start, prefix_length=torch.zeros_like(row), length=length),
    )
