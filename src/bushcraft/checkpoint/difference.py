"""Do two checkpoints hold the same tensors, bit for bit? Whatever the layouts were that wrote them."""

from collections.abc import Mapping

import torch

from bushcraft.checkpoint.chunks import box_of
from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.checkpoint.tensors import load_part
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot


def different_tensors(depot: Depot, one: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]) -> list[str]:
    """The names of tensors that only one has, or whose shape, dtype or bits differ, sorted.

    What was cut alike is compared by its checksums; of what was not, a chunk at a time is read.
    Errors: `StoreError`, `CorruptObjectError`.
    """
    shared = {*one} & {*other}
    differing = {name for name in shared if not _same(depot, name, one[name], other[name])}
    return sorted({*one} ^ {*other} | differing)


def _same(depot: Depot, name: str, one: TensorEntry, other: TensorEntry) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    coarse, fine = sorted((one, other), key=lambda entry: len(entry.chunks))  # large chunks would be read many times
    checksums = _checksums(fine)
    return all(
        checksums[box] == checksum if box in checksums else _same_box(depot, name, coarse, fine, box)
        for box, checksum in _checksums(coarse).items()
    )


def _checksums(entry: TensorEntry) -> dict[Box, str]:
    return {box_of(chunk): chunk.xxh3_128 for chunk in entry.chunks}


def _same_box(depot: Depot, name: str, one: TensorEntry, other: TensorEntry, box: Box) -> bool:
    found = []
    for entry in (one, other):
        tensor = torch.empty(box.shape, dtype=getattr(torch, entry.dtype))
        load_part(depot, name, entry, Part(tensor, box, entry.shape, writes=False))
        found.append(tensor.view(-1).view(torch.uint8))
    return torch.equal(*found)
