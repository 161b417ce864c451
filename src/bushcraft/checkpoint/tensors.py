"""Parts of tensors → objects → parts of any other layout: raw bytes, streamed, each chunk with its own checksum.

A rank writes the boxes that it holds, cut along their first dimension into chunks. A rank of another layout reads the
chunks that meet its own boxes, and no others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from bushcraft.checkpoint.chunks import box_of, check_presence, in_storage_order, read_chunk
from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.errors import CheckpointError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot
from bushcraft.store.durable import machine_errors
from bushcraft.store.incoming import IncomingFile

OBJECT_BYTES = 256 * 1024 * 1024
"""A new object is begun after so many bytes, so that slow stores retry little."""
CHUNK_BYTES = 4 * 1024 * 1024
"""The largest chunk, if a row is not longer: who needs a few rows reads and verifies little more."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element, a dtype that numpy has as well."""


def save_parts(depot: Depot, parts: Mapping[str, Part]) -> dict[str, TensorEntry]:
    """Store durably what this rank writes, in the order of the names; entries with just these chunks.

    `merge_entries` of all ranks' entries gives those of the manifest.
    """
    entries: dict[str, TensorEntry] = {}
    written: list[tuple[Future[str], list[_Placed]]] = []
    with ExitStack() as files, ThreadPoolExecutor(1) as publisher:  # which syncs one object while the next is written
        for _, pieces in groupby(_pieces(parts, entries), key=lambda piece: piece.object_number):
            new = files.enter_context(depot.new_file())
            with machine_errors("write", new.path):
                placed = [_write(new, piece) for piece in pieces]
            if written:
                written[-1][0].result()
            written.append((publisher.submit(depot.put_file, new), placed))
    chunks: dict[str, list[Chunk]] = {name: [] for name in entries}
    for stored, placed in written:
        for name, box, begin, end, checksum in placed:
            chunks[name].append(Chunk(box.offset, box.shape, stored.result(), begin, end, checksum))
    return {name: replace(entry, chunks=tuple(chunks[name])) for name, entry in entries.items()}


def save_tensors(depot: Depot, tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Store whole tensors durably, in the order of their names, each asked for once."""
    return save_parts(depot, _Whole(tensors))


def merge_entries(entries: Sequence[Mapping[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """The entries of all ranks as one, chunks in the order of their offsets.

    Errors: `CheckpointError` that names the first tensor whose chunks do not cover it exactly once.
    """
    merged: dict[str, TensorEntry] = {}
    for name in sorted({name for of_rank in entries for name in of_rank}):
        held = [of_rank[name] for of_rank in entries if name in of_rank]
        chunks = sorted((chunk for entry in held for chunk in entry.chunks), key=lambda chunk: chunk.offset)
        _check_cover(name, held[0].shape, [box_of(chunk) for chunk in chunks])
        merged[name] = replace(held[0], chunks=tuple(chunks))
    return merged


def load_parts(depot: Depot, entries: Mapping[str, TensorEntry], parts: Mapping[str, Part]) -> None:
    """Fill each part's tensor, which may be a strided view, with the verified bytes of the chunks that meet its box.

    `entries` may be more than those of the parts: errors count the other tensors that are concerned too.
    Errors: `CheckpointError` (global shape or dtype differs), `CorruptObjectError`, `StoreError`.
    """
    for name, part in parts.items():
        _check_kind(name, entries[name], part)
    for name, part in parts.items():
        for chunk in entries[name].chunks:
            shared = box_of(chunk).intersection(part.box)
            if not shared.is_empty:
                _fill(part, shared, chunk, read_chunk(depot, name, chunk, entries))


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
    total = 0
    rank, world_size = share
    for name, chunk in in_storage_order(entries)[rank::world_size]:
        total += len(read_chunk(depot, name, chunk, entries))
        if progress is not None:
            progress(total)
    return total


def _check_cover(name: str, shape: tuple[int, ...], boxes: list[Box]) -> None:
    """`boxes` are in the order of their offsets, so that only those can meet whose rows have not ended."""
    whole = Box.whole(shape)
    reaching: list[Box] = []
    for box in boxes:
        reaching = [other for other in reaching if other.offset[:1] == () or _end_row(other) > box.offset[0]]
        if any(not box.intersection(other).is_empty for other in reaching):
            raise _not_covered(f"tensor {name} was written twice, by two ranks, from {list(box.offset)} on")
        reaching.append(box)
    n_written = sum(whole.intersection(box).numel for box in boxes)
    if n_written != whole.numel:
        raise _not_covered(f"tensor {name}: no rank wrote {whole.numel - n_written} of its {whole.numel} elements")


def _end_row(box: Box) -> int:
    return box.offset[0] + box.shape[0]


def _not_covered(message: str) -> CheckpointError:
    return CheckpointError(message, "Nothing was published: the checkpoint before it stands. Save at another layout")


class _Piece(NamedTuple):
    """What becomes one chunk."""

    name: str
    box: Box
    data: memoryview
    object_number: int
    """Which of the objects it goes to."""
    begin: int
    """Where in there."""


class _Placed(NamedTuple):
    """A piece in an object that has no name yet."""

    name: str
    box: Box
    begin: int
    end: int
    checksum: str


def _pieces(parts: Mapping[str, Part], entries: dict[str, TensorEntry]) -> Iterator[_Piece]:
    """What this rank writes, cut into chunks; `entries` is given each tensor, still without them."""
    object_number = begin = 0
    for name in sorted(parts):
        part = parts[name]
        entries[name] = TensorEntry(part.global_shape, _dtype_name(part.tensor), ())
        if not part.writes or part.box.is_empty:
            continue
        for box in _row_blocks(part.box, part.tensor.element_size()):
            data = _bytes_of(part.tensor[box.within(part.box)])
            yield _Piece(name, box, data, object_number, begin)
            begin += len(data)
            if begin >= OBJECT_BYTES:
                object_number, begin = object_number + 1, 0


def _write(new: IncomingFile, piece: _Piece) -> _Placed:
    new.write(piece.data)
    checksum = xxhash.xxh3_128_hexdigest(piece.data)
    return _Placed(piece.name, piece.box, piece.begin, piece.begin + len(piece.data), checksum)


def _row_blocks(box: Box, element_bytes: int) -> Iterator[Box]:
    """Blocks of whole rows of the box, of at most `CHUNK_BYTES` unless a row is longer."""
    if not box.shape:
        yield box
        return
    n_rows, row_shape = box.shape[0], box.shape[1:]
    step = max(1, CHUNK_BYTES * n_rows // (box.numel * element_bytes))
    for begin in range(0, n_rows, step):
        yield Box((box.offset[0] + begin, *box.offset[1:]), (min(step, n_rows - begin), *row_shape))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The elements row-major: the tensor's own memory if it lies so on the CPU, else a copy."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _check_kind(name: str, entry: TensorEntry, part: Part) -> None:
    wanted = _dtype_name(part.tensor)
    if (part.global_shape, wanted) != (entry.shape, entry.dtype):
        raise CheckpointError(
            f"tensor {name} is {entry.dtype}{list(entry.shape)}, the model wants {wanted}{list(part.global_shape)}",
            "Use the recipe that the checkpoint was made with",
        )


def _fill(part: Part, shared: Box, chunk: Chunk, data: bytes) -> None:
    """Copy what chunk and part share, bit by bit."""
    assert tuple(part.tensor.shape) == part.box.shape
    target = part.tensor.detach()[shared.within(part.box)]
    on_cpu = target if target.is_cpu else torch.empty(shared.shape, dtype=target.dtype)
    bits = _bits_of(on_cpu)
    bits[...] = np.frombuffer(data, bits.dtype).reshape(chunk.shape)[shared.within(box_of(chunk))]
    if on_cpu is not target:
        target.copy_(on_cpu)


def _bits_of(tensor: Tensor) -> npt.NDArray[np.integer]:
    """The same memory as whole numbers: numpy has no bfloat16."""
    array: npt.NDArray[np.integer] = tensor.view(_BITS[tensor.element_size()]).numpy()
    return array


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
