"""The device mesh of a layout: the process groups in which a rank talks to others."""

import math
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from bushcraft.parallel.layout import AXES, Coordinate, Layout


class Mesh:
    """The groups of one rank. Every rank of the process group makes it, at the same place in its program."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        assert dist.get_world_size() == layout.world_size
        self.layout = layout
        self.device = device
        self.rank = dist.get_rank()
        self.at = layout.coordinate(self.rank)
        self._ranks = torch.arange(layout.world_size).view(layout.shape)
        self._groups: dict[tuple[str, ...], dist.ProcessGroup] = {}
        for axes in (("tensor",), ("context",), ("pipe",), ("shard", "context"), MATRIX_AXES, GRADIENT_AXES):
            self._groups[axes] = self._make(axes)
        self.ends = self._ends()
        """The first and the last rank of this one's pipeline, on these two alone."""

    def group(self, *axes: str) -> dist.ProcessGroup:
        """The ranks that differ from this one in these axes alone."""
        return self._groups[axes]

    def size(self, *axes: str) -> int:
        """How many ranks `group` has."""
        return math.prod(getattr(self.layout, axis) for axis in axes)

    @cached_property
    def weights(self) -> DeviceMesh | None:
        """Over which FSDP cuts the weights, with `replicate` in front where there are copies; None for one rank."""
        inner, outer = self.layout.shard * self.layout.context, self.layout.replicate
        if inner * outer == 1:
            return None
        order = [AXES.index(axis) for axis in ("pipe", "tensor", "replicate", "shard", "context")]
        ranks = self._ranks.permute(order).reshape(self.layout.pipe, self.layout.tensor, outer, inner)
        names = ("pipe", "tensor", "replicate", "shard")
        mesh = DeviceMesh(self.device.type, ranks, mesh_dim_names=names)
        return mesh["replicate", "shard"] if outer > 1 else mesh["shard"]

    def coordinates(self, *axes: str) -> list[Coordinate]:
        """Of the ranks of a group, in its order."""
        return [self.layout.coordinate(rank) for rank in dist.get_process_group_ranks(self._groups[axes])]

    def _make(self, axes: tuple[str, ...]) -> dist.ProcessGroup:
        """Groups along `axes`; all ranks make all of them, in the same order."""
        last = [AXES.index(axis) for axis in axes]
        first = [i for i in range(len(AXES)) if i not in last]
        mine: dist.ProcessGroup | None = None
        for ranks in self._ranks.permute(first + last).reshape(-1, self.size(*axes)).tolist():
            group = dist.new_group(ranks)
            if self.rank in ranks:
                mine = group
        assert isinstance(mine, dist.ProcessGroup)
        return mine

    def _ends(self) -> dist.ProcessGroup | None:
        mine = None
        if self.layout.pipe > 1:
            for first, last in zip(self._ranks[0].flatten().tolist(), self._ranks[-1].flatten().tolist(), strict=True):
                group = dist.new_group([first, last])
                if self.rank in (first, last):
                    mine = group
        return mine


MATRIX_AXES = ("shard", "context", "tensor")
"""Ranks that hold the parts of one copy of a stage's weights."""
GRADIENT_AXES = ("pipe", "shard", "context", "tensor")
"""Ranks that hold the parts of one copy of all weights."""
