"""Parts of tensors → objects: raw bytes, streamed, each chunk with its own checksum.

A rank writes the boxes that it holds, cut along their first dimension into chunks, which fill objects in the order of
their names. Where an object begins depends on nothing but the boxes, so that equal tensors give equal objects, and a
chunk that a checkpoint before it holds already can be found there.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from bushcraft.checkpoint.chunks import box_of, dtype_name
from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.checkpoint.write_object import NewChunk, write_object
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot

OBJECT_BYTES = 256 * 1024 * 1024
"""A new object is begun after so many bytes, so that slow stores retry little."""
CHUNK_BYTES = 4 * 1024 * 1024
"""The largest chunk, if a row is not longer: who needs a few rows reads and verifies little more."""
WRITERS = 2
"""Objects written at once: while one waits for the disk, another is hashed. More of them gained nothing."""


def save_parts(
    depot: Depot, parts: Mapping[str, Part], previous: Mapping[str, TensorEntry] | None = None
) -> dict[str, TensorEntry]:
    """Store durably what this rank writes, in the order of the names; entries with just these chunks.

    `merge_entries` of all ranks' entries gives those of the manifest. A chunk whose bytes are those of the same box in
    `previous`, by their checksum, stays where it lies there: the caller knows that its object is durable and whole.
    A tensor is asked for once, and let go when its objects are written: those of `WRITERS` + 1 objects are held.
    Errors: `StoreError`.
    """
    entries: dict[str, TensorEntry] = {}
    written: list[Future[list[tuple[str, Chunk]]]] = []
    running: set[Future[list[tuple[str, Chunk]]]] = set()
    with ThreadPoolExecutor(WRITERS) as writers:
        for _, pieces in groupby(_pieces(parts, entries, previous or {}), key=lambda piece: piece.object_number):
            if len(running) == WRITERS:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            written.append(writers.submit(_write_object, depot, list(pieces)))
            running.add(written[-1])
    chunks: dict[str, list[Chunk]] = {name: [] for name in entries}
    for future in written:
        for name, chunk in future.result():
            chunks[name].append(chunk)
    return {name: replace(entry, chunks=tuple(chunks[name])) for name, entry in entries.items()}


def save_tensors(depot: Depot, tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """`save_parts` of whole tensors."""
    return save_parts(depot, _Whole(tensors))


class _Piece(NamedTuple):
    """What becomes one chunk."""

    name: str
    box: Box
    tensor: Tensor
    """Its elements, where they lie."""
    object_number: int
    """Which of the objects it goes to."""
    before: Chunk | None
    """The same box in the checkpoint before."""


def _pieces(
    parts: Mapping[str, Part], entries: dict[str, TensorEntry], previous: Mapping[str, TensorEntry]
) -> Iterator[_Piece]:
    """What this rank writes, cut into chunks; `entries` is given each tensor, still without them."""
    object_number = n_bytes = 0
    for name in sorted(parts):
        part = parts[name]
        entries[name] = TensorEntry(part.global_shape, dtype_name(part.tensor), ())
        if not part.writes or part.box.is_empty:
            continue
        before = _chunks_by_box(previous.get(name), entries[name].dtype)
        element_bytes = part.tensor.element_size()
        for box in row_blocks(part.box, element_bytes):
            yield _Piece(name, box, part.tensor[box.within(part.box)], object_number, before.get(box))
            n_bytes += box.numel * element_bytes
            if n_bytes >= OBJECT_BYTES:
                object_number, n_bytes = object_number + 1, 0


def _chunks_by_box(entry: TensorEntry | None, dtype: str) -> dict[Box, Chunk]:
    return {box_of(chunk): chunk for chunk in entry.chunks} if entry and entry.dtype == dtype else {}


def row_blocks(box: Box, element_bytes: int) -> Iterator[Box]:
    """Blocks of whole rows of the box, of at most `CHUNK_BYTES` unless a row is longer."""
    if not box.shape:
        yield box
        return
    n_rows, row_shape = box.shape[0], box.shape[1:]
    step = max(1, CHUNK_BYTES * n_rows // (box.numel * element_bytes))
    for begin in range(0, n_rows, step):
        yield Box((box.offset[0] + begin, *box.offset[1:]), (min(step, n_rows - begin), *row_shape))


def _write_object(depot: Depot, pieces: Sequence[_Piece]) -> list[tuple[str, Chunk]]:
    """The chunks by the names of their tensors."""
    return write_object(depot, map(_chunk, pieces)).chunks


def _chunk(piece: _Piece) -> NewChunk:
    return NewChunk(piece.name, piece.box.offset, piece.box.shape, _bytes_of(piece.tensor), piece.before)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The elements row-major: the tensor's own memory if it lies so on the CPU, else a copy."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class _Whole(Mapping[str, Part]):
    """Whole tensors as parts, made when they are asked for: a model may be larger than the memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Part:
        return Part.whole(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
