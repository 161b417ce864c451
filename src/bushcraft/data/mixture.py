"""Which source feeds which position: nested integer floors over a tree of weights, O(log n) and stateless.

`counts(k)` says how many of the first k positions each source has fed. It grows by exactly one in exactly
one source at each position, its sum is k, and no source is ever far from its share, however small.
"""

import heapq
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

SCALE = 1 << 20
"""The weights become integers that sum to about this: the smallest share is one in a million."""
MAX_POSITION = 1 << 42
"""So that position × weight stays inside 64 bits."""


@dataclass(frozen=True)
class _Node:
    """A share of the stream: a source (leaf), or two shares that split it `weight_left : weight - weight_left`."""

    weight: int
    source: int = -1
    left: "_Node | None" = None
    right: "_Node | None" = None


class Mixture:
    """A fixed mixture of `len(weights)` sources."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        """`weights`: positive, any scale."""
        self.n_sources = len(weights)
        self._root = _tree(integer_weights(weights))

    def counts(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the first `position` (N,) positions each source feeds: (n_sources, N)."""
        counts = np.empty((self.n_sources, position.size), np.int64)
        self._fill(self._root, position.astype(np.int64), counts)
        return counts

    def _fill(self, node: _Node, position: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        if node.left is None or node.right is None:
            counts[node.source] = position
            return
        left = position * node.left.weight // node.weight
        self._fill(node.left, left, counts)
        self._fill(node.right, position - left, counts)


def integer_weights(weights: tuple[float, ...]) -> list[int]:
    """Integers in the proportion of `weights`, each at least 1, summing to about `SCALE`; reduced exactly."""
    assert weights
    assert all(w > 0 for w in weights)
    total = sum(map(Fraction, weights))
    return [max(1, round(Fraction(w) / total * SCALE)) for w in weights]


def _tree(weights: list[int]) -> _Node:
    """Huffman's tree: heavy sources near the root, so that each is rounded as few times as its weight earns."""
    heap = [(w, i, _Node(w, source=i)) for i, w in enumerate(weights)]
    heapq.heapify(heap)
    for tie in range(len(weights), 2 * len(weights) - 1):
        (w1, _, light), (w2, _, heavy) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (w1 + w2, tie, _Node(w1 + w2, left=heavy, right=light)))
    return heap[0][2]
