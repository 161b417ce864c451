"""Reading chunks, each against its own checksum; what is missing or damaged is told by the tensors that lie there."""

import contextlib
from collections.abc import Iterator, Mapping

import xxhash
from torch import Tensor

from bushcraft.checkpoint.manifest import Chunk, TensorEntry
from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.parallel.box import Box
from bushcraft.store.depot import Check, Depot

_NEXT_STEP = "It was not used: an older checkpoint will do, or a copy of the depot"


def box_of(chunk: Chunk) -> Box:
    """The rectangle of the tensor that the chunk holds."""
    return Box(chunk.offset, chunk.shape)


def dtype_name(tensor: Tensor) -> str:
    """As entries call the tensor's dtype, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def read_chunk(depot: Depot, name: str, chunk: Chunk, entries: Mapping[str, TensorEntry]) -> bytes:
    """The verified bytes of one chunk of the tensor `name`, which is one of `entries`.

    Errors: `StoreError` (missing), `CorruptObjectError`; both name the tensors that lie in the object.
    """
    with _told_by_tensors(name, chunk, entries):
        return depot.read_range(chunk.object, chunk.begin, chunk.end, _is(chunk))


def read_chunk_into(
    depot: Depot, name: str, chunk: Chunk, entries: Mapping[str, TensorEntry], memory: memoryview
) -> None:
    """`read_chunk` to where its bytes belong. After an error `memory` may hold anything."""
    with _told_by_tensors(name, chunk, entries):
        depot.read_into(chunk.object, chunk.begin, chunk.end, memory, _is(chunk))


def _is(chunk: Chunk) -> Check:
    return lambda data: xxhash.xxh3_128_hexdigest(data) == chunk.xxh3_128


@contextlib.contextmanager
def _told_by_tensors(name: str, chunk: Chunk, entries: Mapping[str, TensorEntry]) -> Iterator[None]:
    try:
        yield
    except CorruptObjectError:
        others = _within(entries, {chunk.object}) - {name}
        also = f" (it also holds {_listed(others)})" if others else ""
        raise CorruptObjectError(
            f"object {chunk.object} is corrupted: tensor {name}, bytes {chunk.begin}-{chunk.end}{also}", _NEXT_STEP
        ) from None
    except StoreError as error:
        raise type(error)(f"{error.message} ({_listed(_within(entries, {chunk.object}))})", error.next_step) from None


def check_presence(depot: Depot, entries: Mapping[str, TensorEntry]) -> None:
    """Errors: `StoreError` that names all the tensors of which an object is missing."""
    objects = {chunk.object for entry in entries.values() for chunk in entry.chunks}
    missing = sorted(name for name in objects if not depot.has(name))
    if missing:
        which = f"object {missing[0]} is" if len(missing) == 1 else f"{_counted(missing, 'objects')} are"
        tensors = _listed(_within(entries, set(missing)))
        raise StoreError(f"{which} missing in depot {depot} ({tensors})", _NEXT_STEP)


def _within(entries: Mapping[str, TensorEntry], objects: set[str]) -> set[str]:
    """The tensors that have a chunk in one of these objects."""
    return {name for name, entry in entries.items() if any(chunk.object in objects for chunk in entry.chunks)}


def _listed(names: set[str]) -> str:
    return f"tensor {min(names)}" if len(names) == 1 else _counted(sorted(names), "tensors")


def _counted(names: list[str], what: str) -> str:
    """The first two names, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{what} " + ("{} and {}" if len(names) == 2 else "{}, {}").format(*names) + more


def in_storage_order(entries: Mapping[str, TensorEntry]) -> list[tuple[str, Chunk]]:
    """All chunks with the names of their tensors, as they lie in their objects."""
    found = [(name, chunk) for name, entry in entries.items() for chunk in entry.chunks]
    return sorted(found, key=lambda named: (named[1].object, named[1].begin))
