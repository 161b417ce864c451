"""Chunks → one object: each is checked against the checkpoint before, hashed and written while it is in the cache."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import xxhash

from bushcraft.checkpoint.manifest import Chunk
from bushcraft.store.depot import Depot
from bushcraft.store.durable import machine_errors

_THIS_OBJECT = ""
"""Stands for the name of an object that is still being written."""


class NewChunk(NamedTuple):
    """The bytes of a box of a tensor."""

    name: str
    """Of the tensor."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    data: memoryview
    before: Chunk | None
    """The same box in the checkpoint before."""
    gap: bytes | memoryview = b""
    """What lies in front of it where the object is the image of a file; left out once a chunk was."""


class WrittenObject(NamedTuple):
    """Where the chunks are, in their order."""

    name: str
    """The new object; empty if no chunk is new."""
    chunks: list[tuple[str, Chunk]]
    """(tensor, chunk): in the new object, or where the checkpoint before has it."""
    is_whole: bool
    """Whether all chunks are in it."""


def write_object(depot: Depot, chunks: Iterable[NewChunk]) -> WrittenObject:
    """Store what is new of these chunks durably, as one object. Errors: `StoreError`."""
    found: list[tuple[str, Chunk]] = []
    is_whole = True
    with depot.new_file() as new:
        for chunk in chunks:
            checksum = xxhash.xxh3_128_hexdigest(chunk.data)
            if chunk.before is not None and chunk.before.xxh3_128 == checksum:
                placed, is_whole = chunk.before, False
            else:
                with machine_errors("write", new.path):
                    if is_whole and chunk.gap:
                        new.write(chunk.gap)
                    begin = new.size
                    new.write(chunk.data)
                placed = Chunk(chunk.offset, chunk.shape, _THIS_OBJECT, begin, new.size, checksum)
            found.append((chunk.name, placed))
        name = depot.put_file(new) if new.size else _THIS_OBJECT
    named = [(tensor, replace(c, object=name) if c.object == _THIS_OBJECT else c) for tensor, c in found]
    return WrittenObject(name, named, is_whole)
