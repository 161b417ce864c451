"""Bring a depot's copy of an object in order, from any depot that has a good one."""

from collections.abc import Sequence

from bushcraft.errors import StoreError
from bushcraft.store.depot import READ_BYTES, Depot
from bushcraft.store.durable import machine_errors
from bushcraft.store.incoming import IncomingFile


def copy_object(name: str, source: Depot, target: Depot, staging: Depot) -> int:
    """Store in `target` what `source` has under that name, verified on the way; its bytes.

    Memory is bounded: the bytes wait in a file of `staging`. Errors: those of `Depot`; nothing was stored then.
    """
    size = source.size(name)
    if size <= READ_BYTES:
        target.store_bytes(name, source.read(name))
        return size
    with staging.new_file() as new:
        for begin in range(0, size, READ_BYTES):
            data = source.fetch(name, begin, min(begin + READ_BYTES, size))
            with machine_errors("write", new.path):
                new.write(data)
        _store(name, new, source, target)
    return size


def mend(name: str, target: Depot, sources: Sequence[Depot], staging: Depot) -> Depot | None:
    """Store the object in `target` anew from the first of `sources` whose copy is good; that one, or None.

    A copy that turns out to be good already is left alone. Errors: `StoreError` if `target` cannot be written.
    """
    if _is_good(name, target):
        return target
    for source in sources:
        if source is not target and _is_good(name, source):
            copy_object(name, source, target, staging)
            return source
    return None


def _is_good(name: str, depot: Depot) -> bool:
    try:
        depot.verify(name)
    except StoreError:
        return False
    return True


def _store(name: str, new: IncomingFile, source: Depot, target: Depot) -> None:
    if new.finish() != name:
        raise source.corrupt(name)
    target.store_file(name, new.path)
