"""Held-out documents that the training documents (nearly) contain: they would flatter the model.

A held-out document is known by a sketch: the smallest hashes of its shingles (runs of 8 words). A training
document is streamed past the index of all sketches; where it holds half of one, that held-out document is
not scored. The share of a bottom-k sketch found in another document's shingles estimates the containment.
Source: Broder 1997, "On the resemblance and containment of documents", sections 2 and 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bushcraft.data.streams import pieces
from bushcraft.store.durable import machine_errors

WORDS_A_SHINGLE = 8
SKETCH_SIZE = 128
CONTAINED = 0.5
"""Share of a sketch in one training document from which on a held-out document is dropped."""

_PIECE_BYTES = 1 << 18
_BASE = 0x9E3779B97F4A7C15
_MULTIPLIER = 0xD6E8FEB86659FD93
Hashes = NDArray[np.uint64]


def shingles(text: bytes) -> Hashes:
    """The distinct hashes of all runs of 8 words of UTF-8 `text`, sorted; none if it is shorter.

    Words are runs of letters, digits and "_" in lower case; a character of three bytes or more (as in
    Chinese) starts a word of its own. Runs across pieces of 256 KiB are passed over.
    """
    parts = [_piece_shingles(piece) for piece in pieces(text, _PIECE_BYTES)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def sketch(text: bytes) -> Hashes:
    """The at most 128 smallest shingles of a document."""
    return shingles(text)[:SKETCH_SIZE]


@dataclass(frozen=True)
class HeldoutIndex:
    """All sketches of the held-out documents: 12 bytes a shingle."""

    hashes: Hashes
    """Sorted; a shingle of several documents stands there once for each."""
    owners: NDArray[np.uint32]
    sizes: NDArray[np.int64]
    """Shingles in the sketch of each document."""

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> "HeldoutIndex":
        """The index of documents 0, 1, 2, …"""
        sketches = [sketch(text) for text in texts]
        sizes = np.array([len(s) for s in sketches], np.int64)
        hashes = np.concatenate([np.zeros(0, np.uint64), *sketches])
        owners = np.repeat(np.arange(len(sketches), dtype=np.uint32), sizes)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], owners[order], sizes)

    def contained_in(self, text: bytes) -> list[int]:
        """The held-out documents of which the training document `text` holds half of the sketch or more."""
        if not len(self.hashes):
            return []
        candidates = shingles(text)
        candidates = candidates[self._maybe[candidates >> self._shift]]
        begins = np.searchsorted(self.hashes, candidates, side="left")
        counts = np.searchsorted(self.hashes, candidates, side="right") - begins
        if not counts.any():
            return []
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self.owners[np.repeat(begins, counts) + within]
        owner, hits = np.unique(owners, return_counts=True)
        found: list[int] = owner[hits >= CONTAINED * self.sizes[owner]].tolist()
        return found

    def save(self, file: IO[bytes]) -> None:
        """Write it into an open file."""
        for array in (self.hashes, self.owners, self.sizes):
            np.save(file, array)

    @classmethod
    def load(cls, path: Path) -> "HeldoutIndex":
        """Errors: `StoreError`."""
        with machine_errors("read", path), path.open("rb") as file:
            return cls(np.load(file), np.load(file), np.load(file))

    @property
    def _shift(self) -> np.uint64:
        """The top bits of a hash that choose its place in `_maybe`: 16 places a shingle, at most 16 MiB."""
        return np.uint64(64 - min(24, max(10, int(16 * len(self.hashes)).bit_length())))

    @cached_property
    def _maybe(self) -> NDArray[np.bool_]:
        """Whether any hash of the index starts with these bits: most of a training document needs no search."""
        table = np.zeros(1 << (64 - int(self._shift)), np.bool_)
        table[self.hashes >> self._shift] = True
        return table


def _word_values() -> NDArray[np.uint64]:
    """For each byte 1 + its lower case if it belongs to a word, else 0."""
    values = np.zeros(256, np.uint64)
    for byte in range(256):
        if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_"):
            values[byte] = 1 + (byte | 0x20 if byte < 0x80 and chr(byte).isupper() else byte)
    return values


_VALUES = _word_values()


@lru_cache(maxsize=1)
def _powers() -> tuple[Hashes, Hashes]:
    """The powers of an odd base modulo 2^64, and those of its inverse, for each place in a piece."""
    powers = np.full((2, _PIECE_BYTES), 1, np.uint64)
    powers[0, 1:], powers[1, 1:] = _BASE, pow(_BASE, -1, 1 << 64)
    return np.cumprod(powers[0]), np.cumprod(powers[1])


def _piece_shingles(text: bytes) -> Hashes:
    raw = np.frombuffer(text, np.uint8)
    values = _VALUES[raw]
    in_word = values != 0
    starts_word = in_word.copy()
    starts_word[1:] &= ~in_word[:-1] | (raw[1:] >= 0xE0)
    starts = np.flatnonzero(starts_word)
    if len(starts) < WORDS_A_SHINGLE:
        return np.zeros(0, np.uint64)
    powers, inverses = _powers()
    # A word's polynomial, wherever it stands: bytes outside words count nothing, so the next start ends it.
    words = _mix(np.add.reduceat(values * powers[: len(raw)], starts) * inverses[starts])
    n_shingles = len(words) - WORDS_A_SHINGLE + 1
    total = np.zeros(n_shingles, np.uint64)
    for place in range(WORDS_A_SHINGLE):
        total *= np.uint64(_MULTIPLIER)
        total += words[place : place + n_shingles]
    return _mix(total)


def _mix(x: Hashes) -> Hashes:
    """Spread all bits over all bits. Source: Vigna 2015, the finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed
