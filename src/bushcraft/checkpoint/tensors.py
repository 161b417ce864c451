"""Tensors → objects → tensors: raw bytes, streamed, each chunk with its own checksum."""

from collections.abc import Callable, Mapping

import torch
import xxhash
from torch import Tensor

from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.errors import CheckpointError, CorruptObjectError
from bushcraft.store.depot import Depot
from bushcraft.store.durable import machine_errors

OBJECT_BYTES = 256 * 1024 * 1024
"""A new object is begun after so many bytes, so that slow stores retry little."""


def save_tensors(depot: Depot, tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Store all tensors durably, in the order of their names."""
    entries: dict[str, TensorEntry] = {}
    pending: dict[str, tuple[Tensor, int, int, str]] = {}
    names = sorted(tensors)
    while names:
        size = 0
        with depot.new_file() as new, machine_errors("write", new.path):
            while names and size < OBJECT_BYTES:
                name = names.pop(0)
                data = _bytes_of(tensors[name])
                new.write(data)
                pending[name] = (tensors[name], size, size + len(data), xxhash.xxh3_128_hexdigest(data))
                size += len(data)
            stored = depot.put_file(new)
        for name, (tensor, begin, end, checksum) in pending.items():
            shape = tuple(tensor.shape)
            chunk = Chunk((0,) * len(shape), shape, stored, begin, end, checksum)
            entries[name] = TensorEntry(shape, str(tensor.dtype).removeprefix("torch."), (chunk,))
        pending = {}
    return entries


def load_tensor(depot: Depot, name: str, entry: TensorEntry, into: Tensor) -> None:
    """Fill `into`, of the entry's shape and dtype, with verified bytes.

    Errors: `CheckpointError` (shape or dtype differs), `CorruptObjectError`, `StoreError`.
    """
    dtype = str(into.dtype).removeprefix("torch.")
    if (tuple(into.shape), dtype) != (entry.shape, entry.dtype):
        raise CheckpointError(
            f"tensor {name} is {entry.dtype}{list(entry.shape)}, the model wants {dtype}{list(into.shape)}",
            "Use the recipe that the checkpoint was made with",
        )
    for chunk in entry.chunks:
        data = read_chunk(depot, name, chunk)
        box = torch.frombuffer(bytearray(data), dtype=into.dtype).reshape(chunk.shape) if data else into.new_empty(0)
        target = into
        for axis, (offset, length) in enumerate(zip(chunk.offset, chunk.shape, strict=True)):
            target = target.narrow(axis, offset, length)
        with torch.no_grad():
            target.copy_(box.reshape(chunk.shape))


def read_chunk(depot: Depot, name: str, chunk: Chunk) -> bytes:
    """The verified bytes of one chunk of the tensor `name`."""
    data = depot.read_range(chunk.object, chunk.begin, chunk.end)
    if xxhash.xxh3_128_hexdigest(data) != chunk.xxh3_128:
        raise CorruptObjectError(
            f"object {chunk.object} is corrupted: tensor {name}, bytes {chunk.begin}-{chunk.end}",
            "It was not used: an older checkpoint will do, or a copy of the depot",
        )
    return data


def verify_tensors(
    depot: Depot, entries: Mapping[str, TensorEntry], progress: Callable[[int], None] | None = None
) -> int:
    """Read every chunk against its checksum; how many bytes that were. Errors as `read_chunk`."""
    total = 0
    for name, entry in entries.items():
        for chunk in entry.chunks:
            total += len(read_chunk(depot, name, chunk))
            if progress is not None:
                progress(total)
    return total


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()
