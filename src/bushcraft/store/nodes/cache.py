"""Pieces of objects on this node's own disk, for all processes of the node.

    usage                        how full it is (`cache_usage.py`)
    incoming/                    files that are not entries yet, locked by their writers
    3f/NAME-BEGIN-END            bytes [BEGIN, END) of object NAME, then the xxh3-128 of its name and bytes (16 bytes)

It is a cache: nothing is made durable, and whatever happens to its files costs time only. An entry is checked when a
process uses it for the first time; who reads checks the bytes against what was meant in any case.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import xxhash

from bushcraft.store.incoming import remove_abandoned
from bushcraft.store.nodes.cache_usage import N_DIRECTORIES, Usage
from bushcraft.store.nodes.rendezvous_hash import BLOCK, pieces

_DIGEST = 16
_MOST_REMEMBERED = 65536
"""Entries that a process remembers to have checked; one that it forgot is checked again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheStats:
    """What this process got from the cache, and what lies in it."""

    hits: int
    misses: int
    bytes: int


class Cache:
    """At most `max_bytes` bytes below `root`; the least recently used go first. A `RangeSource`.

    A disk that is full, fails or cannot be written ends the keeping with one line in the log; it never fails a read.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._usage = Usage(root, max_bytes)
        self._checked: OrderedDict[str, int] = OrderedDict()
        """Entry → inode of the file that was checked."""
        self._hits = self._misses = 0
        self._lock = threading.Lock()
        self._keeps = True
        try:
            (root / "incoming").mkdir(parents=True, exist_ok=True)
            remove_abandoned(root / "incoming")
        except OSError as error:
            self._give_up(error)

    def fetch(self, name: str, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of object `name`, or None. Those of a first use have the checksum they were kept with."""
        parts = pieces(begin, end)
        data = self._read(name, *parts[0]) if len(parts) == 1 else self._read_all(name, parts)
        with self._lock:
            self._hits += data is not None
            self._misses += data is None
        return data

    def lend(self, name: str, begin: int, end: int) -> BinaryIO | None:
        """One piece as an open file that begins with its bytes, for `sendfile`; None if it is not there. Close it."""
        file = self._open(name, begin, end)
        with self._lock:
            self._hits += file is not None
            self._misses += file is None
        return file

    def blame(self, name: str, begin: int, end: int) -> None:
        """Forget this range: its bytes were wrong."""
        for piece in pieces(begin, end):
            self._forget(_entry(name, *piece))

    def keep(self, name: str, begin: int, end: int, data: bytes) -> None:
        """Keep the bytes [begin, end) of object `name`, which the caller has verified."""
        if end - begin > self.max_bytes:
            return
        for piece in pieces(begin, end):
            if not self._keeps:
                return
            try:
                self._insert(name, *piece, memoryview(data)[piece[0] - begin : piece[1] - begin])
            except FileNotFoundError:  # somebody emptied the whole cache meanwhile
                (self.root / "incoming").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._give_up(error)

    def stats(self) -> CacheStats:
        """Hits and misses of this process; bytes of all of them."""
        try:
            n_bytes = self._usage.total()
        except OSError:
            n_bytes = 0
        return CacheStats(self._hits, self._misses, n_bytes)

    # Reading

    def _read(self, name: str, begin: int, end: int) -> bytes | None:
        file = self._open(name, begin, end)
        if file is None:
            return None
        with file:
            try:
                data = os.pread(file.fileno(), end - begin, 0)
            except OSError:
                return None
        return data if len(data) == end - begin else None

    def _read_all(self, name: str, parts: list[tuple[int, int]]) -> bytes | None:
        """Many pieces, through one block of memory that stays in the processor's cache."""
        if not all((self.root / _entry(name, *piece)).exists() for piece in parts):
            return None
        block, joined = memoryview(bytearray(BLOCK)), BytesIO()
        for begin, end in parts:
            file = self._open(name, begin, end)
            if file is None:
                return None
            with file:
                try:
                    n_read = os.preadv(file.fileno(), [block[: end - begin]], 0)
                except OSError:
                    return None
            if n_read != end - begin:
                return None
            joined.write(block[: end - begin])
        return joined.getvalue()

    def _open(self, name: str, begin: int, end: int) -> BinaryIO | None:
        """A file that holds what was kept; one that does not is removed."""
        entry = _entry(name, begin, end)
        try:
            file = (self.root / entry).open("rb", buffering=0)
        except OSError:
            return None
        try:
            if self._sound(file, entry, end - begin):
                self._touch(file)
                return file
        except OSError:
            pass  # a disk that fails: as if it were not there
        file.close()
        self._forget(entry)
        return None

    def _sound(self, file: BinaryIO, entry: str, size: int) -> bool:
        about = os.fstat(file.fileno())
        if about.st_size != size + _DIGEST:
            return False
        with self._lock:
            if self._checked.get(entry) == about.st_ino:
                return True
        data = os.pread(file.fileno(), size + _DIGEST, 0)
        if len(data) != size + _DIGEST or _digest(entry, memoryview(data)[:size]) != data[size:]:
            return False
        with self._lock:
            self._checked[entry] = about.st_ino
            if len(self._checked) > _MOST_REMEMBERED:
                self._checked.popitem(last=False)
        return True

    def _touch(self, file: BinaryIO) -> None:
        now = time.time_ns()
        with contextlib.suppress(OSError):  # a disk that can only be read
            os.utime(file.fileno(), ns=(now, now))

    # Writing

    def _insert(self, name: str, begin: int, end: int, data: memoryview) -> None:
        entry = _entry(name, begin, end)
        path = self.root / entry
        before = path.stat().st_size if path.exists() else 0
        if before == len(data) + _DIGEST:
            return
        temporary = self.root / "incoming" / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with temporary.open("xb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.writev(file.fileno(), [data, _digest(entry, data)]) < len(data) + _DIGEST:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._usage.add(_directory(entry), len(data) + _DIGEST - before)

    def _forget(self, entry: str) -> None:
        path = self.root / entry
        with self._lock:
            self._checked.pop(entry, None)
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._usage.add(_directory(entry), -size)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            first, self._keeps = self._keeps, False
        if first:
            logger.warning("cache %s keeps nothing more: %s", self.root, os.strerror(error.errno or errno.EIO))


def _entry(name: str, begin: int, end: int) -> str:
    """The path of an entry below the root. Directories are drawn by hash, so that each is a fair sample of all."""
    file = f"{name}-{begin}-{end}"
    return f"{xxhash.xxh3_64_intdigest(file.encode()) % N_DIRECTORIES:02x}/{file}"


def _directory(entry: str) -> int:
    return int(entry[:2], 16)


def _digest(entry: str, data: memoryview) -> bytes:
    hasher = xxhash.xxh3_128(entry.encode())
    hasher.update(data)
    return hasher.digest()


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
