"""A depot: one directory at one provider that holds immutable objects and numbered references.

    depot.json                   {"format": "bushcraft-depot", "version": 1}
    objects/ab/cdef…             an object; its path spells the BLAKE3 hash of its bytes
    refs/NAME/00000007-HASH      the 7th value of the reference NAME (an empty file; the name says it all)
    incoming/                    files that are not objects yet, locked by their writers

A copy of this directory is again a depot. No object is ever deleted.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.store.durable import fsync_directory, machine_errors, make_directory, publish_file, write_atomically
from bushcraft.store.incoming import IncomingFile, remove_abandoned

VERSION = 1
_OBJECT_NAME = re.compile(r"[0-9a-f]{64}")
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_REF_VALUE = re.compile(r"(\d{8})-([0-9a-f]{64})")


def object_name(data: bytes | memoryview) -> str:
    """The name of an object: the BLAKE3 hash of its bytes, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


class Depot:
    """A directory of objects and references; every whole read is verified against the object's name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path) -> "Depot":
        """Make `root` a depot (or open it if it is one). Errors: `StoreError`."""
        marker = root / "depot.json"
        with machine_errors("create", root):
            if not marker.exists():
                for directory in ("objects", "refs", "incoming"):
                    make_directory(root / directory)
                write_atomically(marker, json.dumps({"format": "bushcraft-depot", "version": VERSION}).encode())
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> "Depot":
        """The depot at `root`. Errors: `StoreError` if it is none, or is of a later version."""
        with machine_errors("open", root):
            try:
                marker = json.loads((root / "depot.json").read_bytes())
                version = marker["version"]
            except FileNotFoundError:
                raise StoreError(f"{root} is not a depot", "Create one by `bushcraft data build`") from None
            except (ValueError, KeyError, TypeError):
                raise StoreError(f"{root}/depot.json is damaged", "Restore it from a copy of the depot") from None
        if version > VERSION:
            raise StoreError(f"{root} has depot format {version}, this is for {VERSION}", "Install a newer bushcraft")
        return cls(root)

    # Objects

    def path(self, name: str) -> Path:
        """Where the object `name` lies, whether or not it is there."""
        if not _OBJECT_NAME.fullmatch(name):
            raise StoreError(f"{name!r} is not an object name", "Object names are 64 hexadecimal digits")
        return self.root / "objects" / name[:2] / name[2:]

    def has(self, name: str) -> bool:
        """Whether an object of that name is there (not whether its bytes are right: `verify` tells)."""
        return self.path(name).exists()

    def size(self, name: str) -> int:
        """Bytes of the object `name`. Errors: `StoreError` if it is missing."""
        with machine_errors("read", self.path(name)):
            try:
                return self.path(name).stat().st_size
            except FileNotFoundError:
                raise self._missing(name) from None

    def new_file(self) -> IncomingFile:
        """A file to be written and then handed to `put_file`; close it in any case. Errors: `StoreError`."""
        incoming = self.root / "incoming"
        with machine_errors("write", incoming):
            incoming.mkdir(exist_ok=True)  # a copy of a depot may have come without its empty directories
            return IncomingFile(incoming)

    def remove_abandoned_files(self) -> None:
        """Remove what killed processes left unfinished; called by a process that will write. Errors: `StoreError`."""
        with machine_errors("write", self.root / "incoming"):
            remove_abandoned(self.root / "incoming")

    def put_bytes(self, data: bytes) -> str:
        """Store `data` durably; its name. Putting it again is free of effect."""
        name = object_name(data)
        if not self._holds(name, len(data)):
            with self.new_file() as new, machine_errors("write", new.path):
                new.write(data)
                new.file.flush()
                publish_file(new.path, self.path(name))
        return name

    def put_file(self, new: IncomingFile) -> str:
        """Store a finished file from `new_file`, which moves and is closed; its name."""
        with new, machine_errors("write", new.path):
            new.file.flush()
            name = _hash_file(new.path)
            if not self._holds(name, new.path.stat().st_size):
                publish_file(new.path, self.path(name))
        return name

    def read(self, name: str) -> bytes:
        """All bytes of an object, verified. Errors: `StoreError` (missing), `CorruptObjectError`."""
        path = self.path(name)
        with machine_errors("read", path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise self._missing(name) from None
        if object_name(data) != name:
            raise self._corrupt(name)
        return data

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of an object, NOT verified: the caller holds a checksum of just this range.

        Errors: `StoreError` (missing), `CorruptObjectError` (shorter than that).
        """
        path = self.path(name)
        with machine_errors("read", path):
            try:
                with path.open("rb") as file:
                    data = os.pread(file.fileno(), end - begin, begin)
                    while len(data) < end - begin:  # one pread gives at most 2 GiB
                        more = os.pread(file.fileno(), end - begin - len(data), begin + len(data))
                        if not more:
                            raise CorruptObjectError(
                                f"object {name} ends at byte {begin + len(data)}, before byte {end}",
                                "Run `bushcraft data verify`, then restore it from a copy or build it again",
                            )
                        data += more
            except FileNotFoundError:
                raise self._missing(name) from None
        return data

    def verify(self, name: str) -> None:
        """Read the whole object against its name, in bounded memory. Errors as `read`."""
        path = self.path(name)
        with machine_errors("read", path):
            try:
                found = _hash_file(path)
            except FileNotFoundError:
                raise self._missing(name) from None
        if found != name:
            raise self._corrupt(name)

    def _holds(self, name: str, size: int) -> bool:
        """Whether a good copy is there already; a damaged one is not, so that putting it again repairs it."""
        path = self.path(name)
        with machine_errors("read", path):
            return path.exists() and path.stat().st_size == size and _hash_file(path) == name

    def _missing(self, name: str) -> StoreError:
        return StoreError(f"object {name} is missing in depot {self.root}", "Restore it from a copy, or build it again")

    def _corrupt(self, name: str) -> CorruptObjectError:
        return CorruptObjectError(
            f"object {name} in depot {self.root} is corrupted: its bytes do not have the hash of its name",
            "Restore it from a copy, or build it again; it was not used",
        )

    # References

    def publish(self, ref: str, name: str) -> int:
        """Append the object `name` as the newest value of `ref`; its number. The object must be durable."""
        directory = self._ref_directory(ref)
        with machine_errors("write", directory):
            make_directory(directory)
            number = max((n for n, _ in self.history(ref)), default=0) + 1
            while True:
                try:
                    (directory / f"{number:08d}-{name}").touch(exist_ok=False)
                    break
                except FileExistsError:  # pragma: no cover - two writers of one value at one moment
                    number += 1
            fsync_directory(directory)
        return number

    def history(self, ref: str) -> Iterator[tuple[int, str]]:
        """The values (number, object name) of `ref`, newest first; none if there is no such reference."""
        directory = self._ref_directory(ref)
        with machine_errors("read", directory):
            names = sorted((p.name for p in directory.iterdir()), reverse=True) if directory.is_dir() else []
        for value in map(_REF_VALUE.fullmatch, names):
            if value:
                yield int(value[1]), value[2]

    def latest(self, ref: str) -> str | None:
        """The newest value of `ref`, or None."""
        return next((name for _, name in self.history(ref)), None)

    def refs(self, prefix: str) -> list[str]:
        """The names of all references below `prefix`, sorted."""
        top = self._ref_directory(prefix)

        def refused(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # there is no reference yet
                raise error

        with machine_errors("read", top):
            return sorted(
                directory.relative_to(self.root / "refs").as_posix()
                for directory, _, files in ((Path(d), ds, fs) for d, ds, fs in os.walk(top, onerror=refused))
                if any(map(_REF_VALUE.fullmatch, files))
            )

    def _ref_directory(self, ref: str) -> Path:
        if not _REF_NAME.fullmatch(ref):
            raise StoreError(f"{ref!r} cannot be a name", "Use letters, digits, '.', '_' and '-', parted by '/'")
        return self.root / "refs" / ref


def _hash_file(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
