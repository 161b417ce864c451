"""Tensors as the parts of ranks of random layouts, which the tests of parts share."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.checkpoint.tensors import merge_entries, save_parts
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Check
from bushcraft.store.local import LocalDepot


class CountingDepot(LocalDepot):
    """Notes what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.n_read = 0

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        self.n_read += end - begin
        return super().fetch(name, begin, end)

    def read_into(self, name: str, begin: int, end: int, memory: memoryview, good: Check) -> None:
        self.n_read += end - begin
        super().read_into(name, begin, end, memory, good)


def grid_boxes(shape: tuple[int, ...], grid: tuple[int, ...]) -> Iterator[Box]:
    """The boxes of a grid of ranks, cut as torch.chunk does: the last ones are smaller, or empty."""
    cuts = []
    for length, n in zip(shape, grid, strict=True):
        size = math.ceil(length / n)
        bounds = [min(i * size, length) for i in range(n + 1)]
        cuts.append(list(itertools.pairwise(bounds)))
    for box in itertools.product(*cuts):
        yield Box(tuple(b for b, _ in box), tuple(e - b for b, e in box))


def ranks_of(tensor: Tensor, grid: tuple[int, ...], n_copies: int = 1) -> list[Part]:
    """A part a rank; of several copies the last one is written."""
    shape = tuple(tensor.shape)
    return [
        Part(tensor[box.within(Box.whole(shape))], box, shape, writes=copy == n_copies - 1)
        for copy in range(n_copies)
        for box in grid_boxes(shape, grid)
    ]


def save_by_ranks(depot: LocalDepot, name: str, parts: list[Part]) -> TensorEntry:
    return merge_entries([save_parts(depot, {name: part}) for part in parts])[name]


def filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n = math.prod(shape)
    return (torch.arange(1, n + 1) % (2 if dtype == torch.bool else 251)).to(dtype).reshape(shape)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A shape, and two grids of ranks over it."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    grid = st.tuples(*(st.integers(1, 4) for _ in shape))
    return shape, draw(grid), draw(grid)
