"""The order plane: position → (source, epoch, index), a pure function of the seed and the ledger, in O(1).

A position is the number of sequences consumed before it; it is the run's only cursor. What changes in
mid-run (the weights of the mixture, the batch size, a range to skip) is a record that starts at a position,
so that every earlier position still means the same sequence. Nothing here knows of ranks or workers.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bushcraft.data.mixture import MAX_POSITION, Mixture
from bushcraft.data.permutation import permute_within_windows


@dataclass(frozen=True)
class Source:
    """One stream of the mixture: how many sequences it has, and how many one read of it brings."""

    name: str
    n_sequences: int
    block: int = 1


@dataclass(frozen=True)
class MixtureChange:
    """From `position` on, the sources are drawn with these weights."""

    position: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class BatchSizeChange:
    """From `position` on, a step consumes `global_batch_size` sequences."""

    position: int
    global_batch_size: int


@dataclass(frozen=True)
class Skip:
    """The `length` positions from `position` on are never trained on (after a loss spike, say)."""

    position: int
    length: int


Change = MixtureChange | BatchSizeChange | Skip


@dataclass(frozen=True)
class Samples:
    """The sequences behind some positions, (N,) each."""

    source: NDArray[np.int64]
    epoch: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class _Stretch:
    """Positions from `begin` on, drawn by one mixture; each source has fed `base` sequences before."""

    begin: int
    mixture: Mixture
    base: NDArray[np.int64]


class Order:
    """sample(position) for one run: the sources, the seed, the first mixture and all recorded changes."""

    def __init__(
        self,
        sources: tuple[Source, ...],
        seed: int,
        weights: tuple[float, ...],
        global_batch_size: int,
        changes: Iterable[Change] = (),
        shuffle_window: int = 262_144,
    ) -> None:
        self.sources = sources
        self.seed = seed
        self.shuffle_window = shuffle_window
        changes = sorted(
            changes, key=lambda change: change.position
        )  # stable: of two at one place the later record wins
        self._stretches = [_Stretch(0, Mixture(weights), np.zeros(len(sources), np.int64))]
        self._batch_sizes = {0: global_batch_size}
        self._skips: list[Skip] = []
        for change in changes:
            match change:
                case MixtureChange(position, new_weights):
                    base = self._counts(np.array([position]))[:, 0]
                    if self._stretches[-1].begin == position:
                        self._stretches.pop()
                    self._stretches.append(_Stretch(position, Mixture(new_weights), base))
                case BatchSizeChange(position, size):
                    self._batch_sizes[position] = size
                case Skip():
                    self._skips.append(change)

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The sequences at `positions` (N,), each below 2**42."""
        assert positions.size == 0 or (positions.min() >= 0 and positions.max() < MAX_POSITION)
        before, after = self._counts(positions), self._counts(positions + 1)
        source = (after - before).argmax(axis=0)
        count = before[source, np.arange(positions.size)]
        epoch, index = np.empty_like(count), np.empty_like(count)
        for s, about in enumerate(self.sources):
            mine = np.flatnonzero(source == s)
            epoch[mine] = count[mine] // about.n_sequences
            for e in np.unique(epoch[mine]).tolist():
                now = mine[epoch[mine] == e]
                index[now] = permute_within_windows(
                    count[now] % about.n_sequences,
                    about.n_sequences,
                    about.block,
                    self.shuffle_window,
                    self.seed,
                    about.name,
                    e,
                )
        return Samples(source, epoch, index)

    def counts(self, position: int) -> dict[str, int]:
        """How many of the first `position` positions each source feeds."""
        column = self._counts(np.array([position]))[:, 0]
        return {source.name: int(n) for source, n in zip(self.sources, column, strict=True)}

    def step(self, position: int, end: int) -> tuple[int, int]:
        """The positions [begin, stop) that the step at `position` consumes in a run of `end` sequences.

        begin > position where a range is skipped; begin == stop when nothing is left.
        """
        begin = position
        for skip in sorted(self._skips, key=lambda s: s.position):
            if skip.position <= begin < skip.position + skip.length:
                begin = skip.position + skip.length
        stop = begin + self.global_batch_size(begin)
        for skip in self._skips:
            if begin < skip.position < stop:  # a step ends where a skipped range begins
                stop = skip.position
        return min(begin, end), min(stop, end)

    def global_batch_size(self, position: int) -> int:
        """Sequences a step at `position` consumes."""
        starts = sorted(self._batch_sizes)
        return self._batch_sizes[starts[bisect.bisect_right(starts, position) - 1]]

    def _counts(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        begins = [stretch.begin for stretch in self._stretches]
        which = np.searchsorted(begins, positions, side="right") - 1
        counts = np.empty((len(self.sources), positions.size), np.int64)
        for w in np.unique(which).tolist():
            inside = which == w
            stretch = self._stretches[w]
            counts[:, inside] = stretch.base[:, None] + stretch.mixture.counts(positions[inside] - stretch.begin)
        return counts
