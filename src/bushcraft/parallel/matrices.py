"""Whole matrices for a moment: what is cut over ranks is put together on one of them, changed there, and cut again.

An update that mixes all elements of a matrix (Muon) cannot be made of its parts. The matrices are dealt out over the
ranks that share them, so that each rank gathers some and all together do the work once: two exchanges a step, each of
as many bytes as the matrices have.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from bushcraft.parallel.box import Box
from bushcraft.parallel.mesh import MATRIX_AXES, Mesh
from bushcraft.parallel.rules import box
from bushcraft.parallel.weights import Weight

Change = Callable[[list[Tensor]], list[Tensor]]
"""Whole matrices → matrices of the same shapes."""


def change_whole(weights: Sequence[Weight], parts: list[Tensor], mesh: Mesh | None, change: Change) -> list[Tensor]:
    """What `change` makes of the matrices of which each rank has `parts`; this rank's parts of it."""
    if mesh is None or mesh.size(*MATRIX_AXES) == 1:
        return change(parts)
    exchange = _Exchange(weights, mesh)
    return exchange.back(change(exchange.to_owners(parts)), parts)


class _Exchange:
    """Matrix i belongs to rank i mod n of the group."""

    def __init__(self, weights: Sequence[Weight], mesh: Mesh) -> None:
        self._group = mesh.group(*MATRIX_AXES)
        self._n, self._rank = self._group.size(), self._group.rank()
        self._shapes = [weight.shape for weight in weights]
        places = mesh.coordinates(*MATRIX_AXES)
        self._boxes = [[box(w.shape, w.axes, mesh.layout, at) for at in places] for w in weights]

    def to_owners(self, parts: list[Tensor]) -> list[Tensor]:
        """The whole matrices that belong to this rank."""
        sent = [[parts[i] for i in self._owned_by(rank)] for rank in range(self._n)]
        mine = self._owned_by(self._rank)
        received = self._swap(sent, [[self._boxes[i][rank].shape for i in mine] for rank in range(self._n)], parts[0])
        whole = [parts[0].new_empty(self._shapes[i]) for i in mine]
        for rank, tensors in enumerate(received):
            for i, matrix, tensor in zip(mine, whole, tensors, strict=True):
                place = self._boxes[i][rank]
                matrix[place.within(Box.whole(self._shapes[i]))] = tensor
        return whole

    def back(self, whole: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
        """This rank's parts of all matrices, of which it has the whole of some."""
        mine = self._owned_by(self._rank)
        sent = [
            [m[self._boxes[i][rank].within(Box.whole(self._shapes[i]))] for i, m in zip(mine, whole, strict=True)]
            for rank in range(self._n)
        ]
        shapes = [[tuple(parts[i].shape) for i in self._owned_by(rank)] for rank in range(self._n)]
        received = self._swap(sent, shapes, parts[0])
        found = {
            i: tensor
            for rank, tensors in enumerate(received)
            for i, tensor in zip(self._owned_by(rank), tensors, strict=True)
        }
        return [found[i] for i in range(len(parts))]

    def _owned_by(self, rank: int) -> range:
        return range(rank, len(self._shapes), self._n)

    def _swap(self, sent: list[list[Tensor]], shapes: list[list[tuple[int, ...]]], like: Tensor) -> list[list[Tensor]]:
        """To rank r goes `sent[r]`; from it come tensors of `shapes[r]`."""
        empty = like.new_empty(0)
        outgoing = [torch.cat([empty, *(tensor.flatten() for tensor in tensors)]) for tensors in sent]
        sizes = [[math.prod(shape) for shape in of_rank] for of_rank in shapes]
        incoming = like.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(
            incoming, torch.cat(outgoing), list(map(sum, sizes)), list(map(len, outgoing)), self._group
        )
        return [
            [tensor.view(shape) for tensor, shape in zip(torch.split(piece, size), of_rank, strict=True)]
            if size
            else []
            for piece, size, of_rank in zip(torch.split(incoming, list(map(sum, sizes))), sizes, shapes, strict=True)
        ]
