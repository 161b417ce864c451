"""A depot: one directory or bucket at one provider that holds immutable objects and numbered references.

    depot.json                   {"format": "bushcraft-depot", "version": 1}
    objects/ab/cdef…             an object; its path spells the BLAKE3 hash of its bytes
    refs/NAME/00000007-HASH      the 7th value of the reference NAME (an empty file; the name says it all)

The layout is the same everywhere, so that a copy of a depot is again a depot. A kind of depot (`local.py`,
`bucket.py`) brings the primitives; what is built of them stands here. A set of depots (`depots.py`) is a depot as well.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError
from bushcraft.store.incoming import IncomingFile

VERSION = 1
OBJECT_NAME = re.compile(r"[0-9a-f]{64}")
REF_VALUE = re.compile(r"(\d{8})-([0-9a-f]{64})")
READ_BYTES = 8 * 1024 * 1024
"""Of a large object at a time, so that memory stays bounded."""
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")

Check = Callable[[bytes | memoryview], bool]
"""Whether bytes are the ones that were meant: who reads a part of an object holds a checksum of it."""


def object_name(data: bytes | memoryview) -> str:
    """The name of an object: the BLAKE3 hash of its bytes, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def object_path(name: str) -> str:
    """Where the object lies in every depot, from its root. Errors: `StoreError` if that is no object's name."""
    if not OBJECT_NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not an object name", "Object names are 64 hexadecimal digits")
    return f"objects/{name[:2]}/{name[2:]}"


def ref_path(ref: str) -> str:
    """The folder of a reference's values, from the depot's root. Errors: `StoreError` if that cannot be a name."""
    if not _REF_NAME.fullmatch(ref):
        raise StoreError(f"{ref!r} cannot be a name", "Use letters, digits, '.', '_' and '-', parted by '/'")
    return f"refs/{ref}"


class Depot(ABC):
    """Objects and references. `str()` of it is its place, without secrets, as messages show it.

    Errors of all methods: `MissingObjectError`, `CorruptObjectError`, `UnreachableError` (the provider does not
    answer), or another `StoreError` (a full disk, no permission).
    """

    name: str
    """What the store calls it."""

    # What each kind brings

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether an object of that name is there (not whether its bytes are right: `verify` tells)."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of the object."""

    @abstractmethod
    def fetch(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of an object as they lie there, NOT verified; `CorruptObjectError` if it is shorter."""

    @abstractmethod
    def fetch_all(self, name: str) -> bytes:
        """All bytes of an object as they lie there, NOT verified."""

    @abstractmethod
    def holds(self, name: str, size: int) -> bool:
        """Whether it need not be stored again: a copy is there that looks right, as far as is cheap to tell."""

    @abstractmethod
    def store_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Store bytes durably under their hash, whatever is there now; a reader sees all of them or nothing."""

    @abstractmethod
    def store_file(self, name: str, path: Path) -> None:
        """Store the bytes of a file, whose hash is `name`, durably; the file stays."""

    @abstractmethod
    def new_file(self) -> IncomingFile:
        """A file to be written and then handed to `put_file`; close it in any case."""

    @abstractmethod
    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Names and sizes of all objects whose name begins so, in the order of the names."""

    @abstractmethod
    def add_ref(self, ref: str, number: int, name: str) -> None:
        """Write one value of a reference durably."""

    @abstractmethod
    def ref_values(self, ref: str) -> list[tuple[int, str]]:
        """All values (number, object name) of a reference, in no order; empty if there is none."""

    @abstractmethod
    def refs(self, prefix: str = "") -> list[str]:
        """The names of all references below `prefix`, sorted."""

    @abstractmethod
    def remove_object(self, name: str) -> None:
        """For `gc` alone."""

    @abstractmethod
    def remove_ref(self, ref: str, number: int, name: str) -> None:
        """For `gc` alone."""

    # What is built of it

    def read(self, name: str) -> bytes:
        """All bytes of an object, verified."""
        data = self.fetch_all(name)
        if object_name(data) != name:
            raise self.corrupt(name)
        return data

    def read_range(self, name: str, begin: int, end: int, good: Check) -> bytes:
        """Bytes [begin, end) of an object that are `good`."""
        data = self.fetch(name, begin, end)
        if not good(data):
            raise self.corrupt(name, f"bytes {begin}-{end} do not have their checksum")
        return data

    def read_into(self, name: str, begin: int, end: int, memory: memoryview, good: Check) -> None:
        """`read_range` to the bytes of `memory`, which are as many. After an error they may be anything."""
        memory[:] = self.read_range(name, begin, end, good)

    def verify(self, name: str) -> None:
        """Read the whole object against its name, in bounded memory."""
        hasher, size = blake3(), self.size(name)
        for begin in range(0, size, READ_BYTES):
            hasher.update(self.fetch(name, begin, min(begin + READ_BYTES, size)))
        if hasher.hexdigest() != name:
            raise self.corrupt(name)

    def put_bytes(self, data: bytes | memoryview) -> str:
        """Store `data` durably; its name. Putting it again is free of effect, or repairs a damaged copy."""
        name = object_name(data)
        if not self.holds(name, len(data)):
            self.store_bytes(name, data)
        return name

    def put_file(self, new: IncomingFile) -> str:
        """Store a finished file from `new_file`, which is closed and gone afterwards; its name."""
        with new:
            name = new.finish()
            if not self.holds(name, new.size):
                self.store_file(name, new.path)
        return name

    def publish(self, ref: str, name: str) -> int:
        """Append the object `name`, which must be durable, as the newest value of `ref`; its number."""
        number = max((n for n, _ in self.ref_values(ref)), default=0) + 1
        self.add_ref(ref, number, name)
        return number

    def history(self, ref: str) -> list[tuple[int, str]]:
        """The values (number, object name) of `ref`, newest first; none if there is no such reference."""
        return sorted(self.ref_values(ref), reverse=True)

    def latest(self, ref: str) -> str | None:
        """The newest value of `ref`, or None."""
        return next((name for _, name in self.history(ref)), None)

    def remove_abandoned_files(self) -> None:  # noqa: B027 - most kinds keep none
        """Remove what killed processes left unfinished; called by a process that will write."""

    # How its errors read

    def missing(self, name: str) -> MissingObjectError:
        return MissingObjectError(
            f"object {name} is missing in depot {self}", "Restore it from a copy, or build it again"
        )

    def corrupt(self, name: str, why: str = "its bytes do not have the hash of its name") -> CorruptObjectError:
        return CorruptObjectError(
            f"object {name} in depot {self} is corrupted: {why}",
            "Restore it from a copy, or build it again; it was not used",
        )

    def short(self, name: str, size: int, end: int) -> CorruptObjectError:
        return CorruptObjectError(
            f"object {name} ends at byte {size}, before byte {end}",
            "Run `bushcraft store verify`, then restore it from a copy or build it again",
        )
