"""Objects → the parts of any layout: a rank reads the chunks that meet its own boxes, and no others.

Several chunks are read at once, in the order in which they lie. A chunk that a part holds whole, row-major in this
machine's memory, is read straight to its place; of others what they share is copied there.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bushcraft.checkpoint.chunks import (
    box_of,
    check_presence,
    dtype_name,
    in_storage_order,
    read_chunk,
    read_chunk_into,
)
from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.errors import CheckpointError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot

READERS = 4
"""Chunks read at once: two fill a local disk, and a bucket answers late."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element, a dtype that numpy has as well."""


def load_parts(depot: Depot, entries: Mapping[str, TensorEntry], parts: Mapping[str, Part]) -> None:
    """Fill each part's tensor, which may be a strided view, with the verified bytes of the chunks that meet its box.

    `entries` may be more than those of the parts: errors count the other tensors that are concerned too.
    Errors: `CheckpointError` (global shape or dtype differs), `CorruptObjectError`, `StoreError`. After these two some
    parts are filled and others are not; none holds bytes that are not what they should be.
    """
    for name, part in parts.items():
        _check_kind(name, entries[name], part)
    reads = [
        _Read(name, chunk, part, shared)
        for name, part in parts.items()
        for chunk in entries[name].chunks
        if not (shared := box_of(chunk).intersection(part.box)).is_empty
    ]
    reads.sort(key=lambda read: (read.chunk.object, read.chunk.begin))
    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(lambda read: _load(depot, entries, read), reads):
            pass  # the first error is raised here, and what was not begun is given up


def load_part(depot: Depot, name: str, entry: TensorEntry, part: Part) -> None:
    """`load_parts` of one tensor."""
    load_parts(depot, {name: entry}, {name: part})


def load_tensor(depot: Depot, name: str, entry: TensorEntry, into: Tensor) -> None:
    """`load_parts` of one whole tensor."""
    load_part(depot, name, entry, Part.whole(into))


def verify_tensors(
    depot: Depot,
    entries: Mapping[str, TensorEntry],
    progress: Callable[[int], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Read every chunk against its checksum; how many bytes that were.

    With a `share` (rank, world size) each rank reads its part of the chunks, and all together read all.
    Errors: `StoreError` (objects are missing), `CorruptObjectError`; they name the tensors.
    """
    check_presence(depot, entries)
    rank, world_size = share
    chunks = in_storage_order(entries)[rank::world_size]
    total = 0
    with ThreadPoolExecutor(READERS) as readers:
        for n_bytes in readers.map(lambda named: len(read_chunk(depot, named[0], named[1], entries)), chunks):
            total += n_bytes
            if progress is not None:
                progress(total)
    return total


class _Read(NamedTuple):
    """A chunk of the tensor `name`, and what a part shares with it."""

    name: str
    chunk: Chunk
    part: Part
    shared: Box


def _check_kind(name: str, entry: TensorEntry, part: Part) -> None:
    wanted = dtype_name(part.tensor)
    if (part.global_shape, wanted) != (entry.shape, entry.dtype):
        raise CheckpointError(
            f"tensor {name} is {entry.dtype}{list(entry.shape)}, the model wants {wanted}{list(part.global_shape)}",
            "Use the recipe that the checkpoint was made with",
        )


def _load(depot: Depot, entries: Mapping[str, TensorEntry], read: _Read) -> None:
    assert tuple(read.part.tensor.shape) == read.part.box.shape
    target = read.part.tensor.detach()[read.shared.within(read.part.box)]
    if read.shared == box_of(read.chunk) and target.is_cpu and target.is_contiguous():
        _load_in_place(depot, entries, read, target)
    else:
        _copy(read_chunk(depot, read.name, read.chunk, entries), read.chunk, read.shared, target)


def _load_in_place(depot: Depot, entries: Mapping[str, TensorEntry], read: _Read, target: Tensor) -> None:
    memory = target.view(-1).view(torch.uint8).numpy().data
    try:
        read_chunk_into(depot, read.name, read.chunk, entries, memory)
    except BaseException:
        target.zero_()
        raise


def _copy(data: bytes, chunk: Chunk, shared: Box, target: Tensor) -> None:
    """Bit by bit what chunk and target share."""
    on_cpu = target if target.is_cpu else torch.empty(shared.shape, dtype=target.dtype)
    bits = _bits_of(on_cpu)
    bits[...] = np.frombuffer(data, bits.dtype).reshape(chunk.shape)[shared.within(box_of(chunk))]
    if on_cpu is not target:
        target.copy_(on_cpu)


def _bits_of(tensor: Tensor) -> npt.NDArray[np.integer]:
    """The same memory as whole numbers: numpy has no bfloat16."""
    array: npt.NDArray[np.integer] = tensor.view(_BITS[tensor.element_size()]).numpy()
    return array
