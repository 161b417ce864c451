"""How full a node's cache is, and what goes first when it is too full. The processes of the node share one file:

    usage        256 integers (int64): the bytes in each of the cache's directories

It is changed under its lock, for which nobody waits: a process that finds it taken adds its bytes the next time. What
a killed process did not add is noticed when the directory is listed again; a file that is damaged is counted anew.
"""

import contextlib
import fcntl
import os
import random
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

N_DIRECTORIES = 256
SAMPLE = 4096
"""Entries that are compared by age at a time. A cache of no more of them drops exactly the least recently used."""
_STEP = 64
"""A full cache makes room for 1/64 of itself at a time (at most 64 MiB more than it needs), not at each insert."""
_MOST_AHEAD = 64 * 1024 * 1024
_ABSURD = 2**50
"""Bytes that no directory has: the count is damaged."""

Counts = list[int]
_FORMAT = f"<{N_DIRECTORIES}q"
Found = tuple[int, int, int, str]
"""Time of the last use (ns), bytes, directory, path."""


class Usage:
    """The bytes of the cache at `root`, which shall be no more than `max_bytes`."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._pending: Counter[int] = Counter()
        self._lock = threading.Lock()

    def total(self) -> int:
        """Bytes, as far as they have been added. Errors: `OSError`."""
        return sum(self._stored() or self._counted())

    def add(self, directory: int, size: int) -> None:
        """An entry of `size` bytes came into a directory; room is made if that is too much. Errors: `OSError`."""
        with self._lock:
            self._pending[directory] += size
        with self._counts() as counts:
            if counts is not None and sum(counts) > self._max_bytes:
                self._make_room(counts, self._max_bytes - min(self._max_bytes // _STEP, _MOST_AHEAD))

    @contextlib.contextmanager
    def _counts(self) -> Iterator[Counts | None]:
        """The counts, locked, and written back afterwards; None if another process or thread is at it."""
        descriptor = os.open(self._root / "usage", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            stored = self._stored()
            with self._lock:
                pending, self._pending = self._pending, Counter()
            counts = self._counted() if stored is None else stored
            for directory, size in pending.items() if stored is not None else ():
                counts[directory] += size
            try:
                yield counts
            finally:
                os.pwrite(descriptor, struct.pack(_FORMAT, *counts), 0)
        finally:
            os.close(descriptor)

    def _stored(self) -> Counts | None:
        """The counts of the file; None if it is new or damaged."""
        try:
            counts = list(struct.unpack(_FORMAT, (self._root / "usage").read_bytes()))
        except (FileNotFoundError, struct.error):
            return None
        return counts if min(counts) >= 0 and max(counts) <= _ABSURD else None

    def _counted(self) -> Counts:
        return [sum(size for _, size, _, _ in self._listed(directory)) for directory in range(N_DIRECTORIES)]

    def _make_room(self, counts: Counts, target: int) -> None:
        """Drop what was not used for longest until `target` bytes are left.

        A large cache is compared in samples of whole directories, of which the oldest quarter goes.
        """
        while (total := sum(counts)) > target:
            sample, whole = self._sample(counts)
            sample.sort()
            total = sum(counts)
            for _, size, directory, path in sample if whole else sample[: len(sample) // 4]:
                if total <= target:
                    break
                with contextlib.suppress(FileNotFoundError):
                    Path(path).unlink()
                counts[directory] -= size
                total -= size
            if whole:
                return

    def _sample(self, counts: Counts) -> tuple[list[Found], bool]:
        """The entries of directories drawn by chance, whose counts are put right; whether these are all there are."""
        sample: list[Found] = []
        order = random.sample(range(N_DIRECTORIES), N_DIRECTORIES)
        for n_listed, directory in enumerate(order, 1):
            found = list(self._listed(directory))
            counts[directory] = sum(size for _, size, _, _ in found)
            sample += found
            if len(sample) >= SAMPLE:
                return sample, n_listed == N_DIRECTORIES
        return sample, True

    def _listed(self, directory: int) -> Iterator[Found]:
        try:
            entries = os.scandir(self._root / f"{directory:02x}")
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        yield about.st_mtime_ns, about.st_size, directory, entry.path
