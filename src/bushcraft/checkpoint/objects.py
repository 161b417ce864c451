"""Files of a snapshot → objects in the depots, each chunk with its own checksum. The saver's process runs it: no torch.

What is written is hashed on its way. A chunk that the checkpoint before has too is referred to, not written again.
"""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import xxhash

from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.checkpoint.write_object import NewChunk, write_object
from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot, object_name

THREADS = 2
"""Files that are hashed and written at once: while one waits for the disk, the other is hashed."""


class Piece(NamedTuple):
    """Bytes of a snapshot that become one chunk."""

    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: int
    """Which of the files."""
    begin: int
    end: int


@dataclass(frozen=True)
class WrittenFile:
    """What became of one file."""

    chunks: tuple[tuple[str, Chunk], ...]
    """(tensor, chunk) as the checkpoint will say: in new objects, or in those of the checkpoint before."""
    whole: str
    """The BLAKE3 hash of the file: as an object of the depot in memory, all chunks are in it."""
    whole_chunks: tuple[tuple[str, Chunk], ...]
    """The same chunks in that object."""
    failure: StoreError | None
    """Why it is not durable."""


Known = Mapping[tuple[str, tuple[int, ...], tuple[int, ...]], Chunk]
"""(tensor, offset, shape) → where a checkpoint has it."""


def known_chunks(entries: Mapping[str, TensorEntry]) -> Known:
    """What need not be written again where it has not changed."""
    return {(name, chunk.offset, chunk.shape): chunk for name, entry in entries.items() for chunk in entry.chunks}


def write_files(depot: Depot, paths: list[Path], pieces: Iterable[Piece], known: Known) -> list[WrittenFile]:
    """Store all files durably; what could not be stored says why."""
    of_file = {number: list(found) for number, found in groupby(pieces, key=lambda piece: piece.file)}
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda number: _write_file(depot, paths[number], of_file[number], known), sorted(of_file)))


def assemble(
    entries: Mapping[str, TensorEntry], files: Iterable[WrittenFile], whole: bool = False
) -> dict[str, TensorEntry]:
    """The entries with the chunks of these files; with `whole` with those in the objects of the memory depot."""
    chunks: dict[str, list[Chunk]] = {name: [] for name in entries}
    for file in files:
        for name, chunk in file.whole_chunks if whole else file.chunks:
            chunks[name].append(chunk)
    return {name: replace(entry, chunks=tuple(chunks[name])) for name, entry in entries.items()}


def _write_file(depot: Depot, path: Path, pieces: list[Piece], known: Known) -> WrittenFile:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _stored(depot, data, pieces, known)
    except StoreError as error:
        # A new one: the frames of its traceback, and of its cause, would keep the mapping.
        return _only_hashed(data, pieces, type(error)(error.message, error.next_step))


def _stored(depot: Depot, data: memoryview, pieces: list[Piece], known: Known) -> WrittenFile:
    """One object with the chunks that are not known yet; the file as it is, if all are new."""
    written = write_object(depot, _chunks_of(data, pieces, known))
    whole = written.name if written.is_whole else object_name(data)
    checksums = [chunk.xxh3_128 for _, chunk in written.chunks]
    return WrittenFile(tuple(written.chunks), whole, _placed(pieces, checksums, whole), None)


def _chunks_of(data: memoryview, pieces: list[Piece], known: Known) -> Iterator[NewChunk]:
    end = 0
    for piece in pieces:
        before = known.get((piece.name, piece.offset, piece.shape))
        gap = data[end : piece.begin]
        yield NewChunk(piece.name, piece.offset, piece.shape, data[piece.begin : piece.end], before, gap)
        end = piece.end


def _only_hashed(data: memoryview, pieces: list[Piece], failure: StoreError) -> WrittenFile:
    checksums = [xxhash.xxh3_128_hexdigest(data[piece.begin : piece.end]) for piece in pieces]
    whole = object_name(data)
    chunks = _placed(pieces, checksums, whole)
    return WrittenFile(chunks, whole, chunks, failure)


def _placed(pieces: list[Piece], checksums: list[str], name: str) -> tuple[tuple[str, Chunk], ...]:
    return tuple(
        (piece.name, Chunk(piece.offset, piece.shape, name, piece.begin, piece.end, checksum))
        for piece, checksum in zip(pieces, checksums, strict=True)
    )
