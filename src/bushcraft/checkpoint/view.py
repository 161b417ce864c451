"""Checkpoints as files: `checkpoints/RUN/NUMBER/` with safetensors files that are made while they are read.

    manifest.json                       as it lies in the depot
    recipe.json                         the run's recipe
    model.safetensors                   the model's tensors
    optimizer.safetensors, …            the other tensors: a file for each first part of their names
    tokenizer.json, code.tar.zst        objects that the manifest names, where it does

In a file the names are without their first part. Format: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import xxhash

from bushcraft.checkpoint.manifest import Chunk, TensorEntry, read_manifest
from bushcraft.store.depot import Depot, object_name
from bushcraft.store.outside.blocks import BytesFile, File, ObjectFile
from bushcraft.store.outside.tree import Directory, Listing, Node, references, register

BLOCK_BYTES = 32 * 1024 * 1024
"""The largest block of rows that is put together from chunks, if a row is not longer."""
_KEPT = 8
"""Manifests of large models have many chunks."""
_OTHER = "tensors"
"""The file of tensors whose names have one part."""
DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""torch's name → the format's name, bytes an element."""


def checkpoints(depot: Depot) -> Directory:
    """All checkpoints of all runs."""
    view = lru_cache(_KEPT)(lambda name: checkpoint(depot, name))

    def of_run(ref: str) -> Directory:
        found = {str(number): name for number, name in sorted(depot.history(ref))}
        return Listing(lambda: found, lambda number: view(found[number]) if number in found else None)

    return references(depot, "checkpoints", of_run)


def checkpoint(depot: Depot, name: str) -> Directory:
    """The files of the checkpoint whose manifest is that object. Errors: `CheckpointError`, `StoreError`."""
    manifest = read_manifest(depot, name)
    objects = {"manifest.json": name, "code.tar.zst": manifest.code}
    if manifest.tokenizer is not None:
        objects["tokenizer.json"] = manifest.tokenizer.object
    about = {"run": manifest.run, "position": str(manifest.position), "step": str(manifest.step), "manifest": name}
    made: dict[str, File] = {"recipe.json": BytesFile(json.dumps(manifest.recipe, indent=1).encode())}
    for part, entries in _parts(manifest.tensors).items():
        made[f"{part}.safetensors"] = SafetensorsFile(depot, entries, about | {"part": part})

    def child(file: str) -> Node | None:
        if file in objects:
            return ObjectFile(depot, objects[file], depot.size(objects[file]))
        return made.get(file)

    return Listing(lambda: sorted([*objects, *made]), child)


def _parts(tensors: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """By the first parts of their names, which the names then have no more."""
    parts: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        part, parted, rest = name.partition("/")
        parts.setdefault(part if parted else _OTHER, {})[rest if parted else name] = entry
    return parts


@dataclass(frozen=True)
class _Rows:
    """Some rows of a tensor, which are one block of the file."""

    entry: TensorEntry
    begin: int
    end: int


class SafetensorsFile(File):
    """Tensors as one safetensors file: its header is made of the manifest, its bytes are those of the chunks.

    A chunk of whole rows is a block. Where ranks cut the rows, a block is put together from the chunks of all of them.
    """

    def __init__(self, depot: Depot, entries: Mapping[str, TensorEntry], about: Mapping[str, str]) -> None:
        self._depot = depot
        # larger elements first, as the format's own writer does: each tensor then is aligned to its elements
        names = sorted(entries, key=lambda name: (-_element_bytes(entries[name]), name))
        self._header = _header({name: entries[name] for name in names}, about)
        self._blocks = [rows for name in names for rows in _blocks(entries[name])]
        ends = accumulate((_n_bytes(rows) for rows in self._blocks), initial=len(self._header))
        *self.begins, self.size = 0, *ends
        self.identity = object_name(self._header + about["manifest"].encode())

    def block(self, index: int) -> bytes:
        if index == 0:
            return self._header
        rows = self._blocks[index - 1]
        chunks = [chunk for chunk in rows.entry.chunks if _first(chunk) < rows.end and rows.begin < _last(chunk)]
        if len(chunks) == 1 and chunks[0].end - chunks[0].begin == _n_bytes(rows):
            return self._read(chunks[0])
        kind = np.dtype(f"V{_element_bytes(rows.entry)}")
        block: npt.NDArray[np.void] = np.empty((rows.end - rows.begin, *rows.entry.shape[1:]), kind)
        for chunk in chunks:
            begin, end = max(_first(chunk), rows.begin), min(_last(chunk), rows.end)
            columns = tuple(slice(o, o + n) for o, n in zip(chunk.offset[1:], chunk.shape[1:], strict=True))
            data = np.frombuffer(self._read(chunk), kind).reshape(_matrix(chunk.shape))
            block[begin - rows.begin : end - rows.begin, *columns] = data[begin - _first(chunk) : end - _first(chunk)]
        return block.tobytes()

    def _read(self, chunk: Chunk) -> bytes:
        return self._depot.read_range(
            chunk.object, chunk.begin, chunk.end, lambda data: xxhash.xxh3_128_hexdigest(data) == chunk.xxh3_128
        )


def _header(entries: Mapping[str, TensorEntry], about: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **about}}
    at = 0
    for name, entry in entries.items():
        end = at + math.prod(entry.shape) * _element_bytes(entry)
        header[name] = {"dtype": DTYPES[entry.dtype][0], "shape": entry.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _blocks(entry: TensorEntry) -> Iterator[_Rows]:
    """The rows of a tensor, cut where its chunks are, so that few chunks are read for two blocks."""
    if not math.prod(entry.shape):
        return
    cuts = sorted({row for chunk in entry.chunks for row in (_first(chunk), _last(chunk))})
    most = max(1, BLOCK_BYTES // (math.prod(_matrix(entry.shape)[1:]) * _element_bytes(entry)))
    for begin, end in pairwise(cuts):
        for first in range(begin, end, most):
            yield _Rows(entry, first, min(first + most, end))


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A scalar has one row."""
    return shape or (1,)


def _first(chunk: Chunk) -> int:
    """The first row that it has a part of."""
    return chunk.offset[0] if chunk.offset else 0


def _last(chunk: Chunk) -> int:
    """The row behind its last one."""
    return _first(chunk) + _matrix(chunk.shape)[0]


def _n_bytes(rows: _Rows) -> int:
    return (rows.end - rows.begin) * math.prod(_matrix(rows.entry.shape)[1:]) * _element_bytes(rows.entry)


def _element_bytes(entry: TensorEntry) -> int:
    return DTYPES[entry.dtype][1]


register("checkpoints", checkpoints)
