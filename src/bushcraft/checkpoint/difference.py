"""Do two checkpoints hold the same tensors, bit for bit? Whatever the layouts were that wrote them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Difference:
    """How a tensor of two checkpoints differs."""

    name: str
    why: str
    """Empty if its numbers differ, else what makes them incomparable."""
    max_abs: float = math.nan
    """max |a - b|"""
    relative_norm: float = math.nan
    """‖a - b‖ / ‖a‖"""


def differences(depot: Depot, one: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]) -> list[Difference]:
    """The tensors of `different_tensors`, measured in float64, a chunk at a time. Errors: as there."""
    return [_measured(depot, name, one.get(name), other.get(name)) for name in different_tensors(depot, one, other)]


def _measured(depot: Depot, name: str, one: TensorEntry | None, other: TensorEntry | None) -> Difference:
    if one is None or other is None:
        return Difference(name, "only in the second" if one is None else "only in the first")
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        kinds = [f"{entry.dtype}{list(entry.shape)}" for entry in (one, other)]
        return Difference(name, " and ".join(kinds))
    theirs = _checksums(other)
    largest = squares = of_difference = 0.0
    for box, checksum in _checksums(one).items():
        a = _read(depot, name, one, box).double()
        squares += float(a.square().sum())
        if theirs.get(box) != checksum:
            apart = a - _read(depot, name, other, box).double()
            largest = max(largest, float(apart.abs().max()), key=_nan_last)
            of_difference += float(apart.square().sum())
    return Difference(name, "", largest, math.sqrt(of_difference / squares) if squares else math.inf)


def _nan_last(value: float) -> tuple[bool, float]:
    """Orders so that a NaN is not lost in a maximum."""
    return math.isnan(value), value


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
    bits = (_read(depot, name, entry, box).view(-1).view(torch.uint8) for entry in (one, other))
    return torch.equal(*bits)


def _read(depot: Depot, name: str, entry: TensorEntry, box: Box) -> Tensor:
    tensor = torch.empty(box.shape, dtype=getattr(torch, entry.dtype))
    load_part(depot, name, entry, Part(tensor, box, entry.shape, writes=False))
    return tensor
