"""Which documents train, which are held out, and which are exact copies of another.

All of it follows from the BLAKE3 of a document's content: its first 64 bits, taken as a number, are its
*rank*. Held out are the documents of smallest rank, so that copies fall on one side, and neither the order of
files nor the number of workers matters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("rank", "<u8"), ("rest", "<u8"), ("size", "<u8")])
"""A document as the scan saw it: 128 bits of its content's BLAKE3, and its bytes."""
RANKS = 1 << 64
SAMPLE_HEAD = 4 << 20
"""At most so much of one document goes into the tokenizer's sample."""
_RECORDS_IN_MEMORY = 2_000_000

Records = NDArray[Any]
LoadRecords = Callable[[int], Records]
"""The records of task i, read again each time, so that all of them are never in memory at once."""


class Role(IntEnum):
    """What becomes of a document."""

    COPY = 0
    TRAIN = 1
    HELDOUT = 2


@dataclass(frozen=True)
class Bounds:
    """The split as a rule: held out is rank < `heldout` and size <= `largest`."""

    heldout: int
    largest: int
    sample: int
    """The tokenizer's sample: training documents below this rank."""


def rank_below(fraction: float) -> int:
    """The rank below which that fraction of all documents lies."""
    return min(RANKS - 1, int(fraction * RANKS))


def first_copies(load: LoadRecords, n_tasks: int) -> list[NDArray[np.bool_]]:
    """For each task, which of its documents are the first with their content. 2 million records are held at once."""
    lengths = [len(load(task)) for task in range(n_tasks)]
    starts = np.cumsum([0, *lengths])
    first = np.zeros(starts[-1], np.bool_)
    n_parts = 1 + int(starts[-1]) // _RECORDS_IN_MEMORY
    for part in range(n_parts):
        chosen, places = [], []
        for task in range(n_tasks):
            records = load(task)
            inside = np.flatnonzero(records["rank"] % np.uint64(n_parts) == part)
            chosen.append(records[inside])
            places.append(inside + starts[task])
        records, place = np.concatenate(chosen), np.concatenate(places)
        order = np.lexsort((place, records["rest"], records["rank"]))
        rank, rest = records["rank"][order], records["rest"][order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (rank[1:] != rank[:-1]) | (rest[1:] != rest[:-1])
        first[place[order[is_first]]] = True
    return [first[starts[task] : starts[task + 1]] for task in range(n_tasks)]


def choose_bounds(
    load: LoadRecords,
    kept: list[NDArray[np.bool_]],
    fraction: float,
    heldout_bytes: int,
    sample_bytes: int,
    retained: int,
) -> Bounds:
    """The split of the `kept` documents: about `fraction` of them, at most `heldout_bytes`, held out.

    At least one document is held out where there are two; never more than half of the text. Only documents
    below the rank `retained` are at hand, for the held-out set and for the sample of `sample_bytes`.
    """
    total = sum(int(load(task)["size"][keep].sum()) for task, keep in enumerate(kept))
    n_documents = sum(int(keep.sum()) for keep in kept)
    largest = min(heldout_bytes, total // 2) if fraction > 0 else 0
    fitting = (r[r["size"] <= largest] for r in _kept_below(load, kept, retained))
    ranks, sizes = _smallest(fitting, largest)
    n_wanted = max(1, round(fraction * n_documents))
    heldout = _bound(ranks, min(n_wanted, int((np.cumsum(sizes) <= largest).sum())))

    training = (r[(r["rank"] >= heldout) | (r["size"] > largest)] for r in _kept_below(load, kept, retained))
    ranks, sizes = _smallest(training, sample_bytes)
    n_wanted = max(1, int((np.cumsum(np.minimum(sizes, SAMPLE_HEAD)) <= sample_bytes).sum()))
    return Bounds(heldout, largest, sample=_bound(ranks, n_wanted))


def roles(records: Records, kept: NDArray[np.bool_], bounds: Bounds) -> NDArray[np.uint8]:
    """The `Role` of each document of a task."""
    heldout = (records["rank"] < bounds.heldout) & (records["size"] <= bounds.largest)
    return np.where(kept, np.where(heldout, Role.HELDOUT, Role.TRAIN), Role.COPY).astype(np.uint8)


def _kept_below(load: LoadRecords, kept: list[NDArray[np.bool_]], rank: int) -> Iterator[Records]:
    for task, keep in enumerate(kept):
        records = load(task)
        yield records[keep & (records["rank"] < rank)]


def _bound(ranks: NDArray[np.uint64], n: int) -> int:
    """The rank that parts the first `n` of the sorted `ranks` from the others."""
    n = min(n, len(ranks))
    return min(RANKS - 1, int(ranks[n - 1]) + 1) if n else 0


def _smallest(parts: Iterator[Records], n_bytes: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ranks and sizes, by rank, of the records of smallest rank: a little more than `n_bytes` of them."""
    best = np.zeros(0, RECORD)
    for part in parts:
        best = np.sort(np.concatenate([best, part]), order="rank", kind="stable")
        enough = int(np.searchsorted(np.cumsum(np.minimum(best["size"], SAMPLE_HEAD)), n_bytes, side="right")) + 1
        best = best[:enough]
    return best["rank"], best["size"].astype(np.int64)
