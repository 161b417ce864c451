"""What a depot still has to get: a journal in the order of writing, so that a reference follows its objects.

STORE/lag/NAME.jsonl     one line an object or reference
STORE/lag/NAME.done      how many of its bytes are done

It says only what is known to be late. What is lost with it is found again by a scrub, which compares the depots.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bushcraft.store.durable import machine_errors, make_directory, write_atomically


@dataclass(frozen=True)
class Late:
    """An object (`ref` is None) or a value of a reference that a depot has not yet."""

    object: str
    size: int
    since: float
    """Seconds since the epoch."""
    ref: str | None = None
    number: int = 0


@dataclass(frozen=True)
class LagSummary:
    """How far a depot is behind."""

    objects: int
    bytes: int
    refs: int
    seconds: float
    """Age of the oldest entry."""


class Lag:
    """The journal of one depot; many processes append, one at a time works it off."""

    def __init__(self, directory: Path, depot: str) -> None:
        self._path = directory / f"{depot}.jsonl"
        self._done = directory / f"{depot}.done"
        self._worker = directory / f"{depot}.lock"

    def __bool__(self) -> bool:
        """Whether anything is late."""
        try:
            return self._path.stat().st_size > self._n_done()
        except FileNotFoundError:
            return False

    def add(self, *late: Late) -> None:
        """Note it durably. Errors: `StoreError`."""
        lines = b"".join(json.dumps(vars(entry)).encode() + b"\n" for entry in late)
        with machine_errors("write", self._path):
            make_directory(self._path.parent)
            with self._path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(b"" if _ends_whole(file) else b"\n")
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())

    def entries(self) -> Iterator[tuple[int, Late]]:
        """What is late, the oldest first, each with the position of its end, for `done`."""
        with machine_errors("read", self._path):
            try:
                with self._path.open("rb") as file:
                    file.seek(position := self._n_done())
                    for line in file:
                        position += len(line)
                        late = _parsed(line)
                        if late is not None:
                            yield position, late
            except FileNotFoundError:
                return

    def done(self, position: int) -> None:
        """All entries up to there are done. Errors: `StoreError`."""
        write_atomically(self._done, str(position).encode())
        with machine_errors("write", self._path), self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == position:
                write_atomically(self._done, b"0")  # if we are killed here, entries that are done are done again
                file.truncate(0)

    def summary(self) -> LagSummary:
        """How far the depot is behind."""
        objects = n_bytes = refs = 0
        oldest = None
        for _, late in self.entries():
            oldest = oldest or late.since
            if late.ref is None:
                objects, n_bytes = objects + 1, n_bytes + late.size
            else:
                refs += 1
        return LagSummary(objects, n_bytes, refs, max(0.0, time.time() - oldest) if oldest else 0.0)

    @contextmanager
    def worker(self) -> Iterator[bool]:
        """Whether we are the one who works it off; others let it be."""
        with machine_errors("write", self._worker):
            make_directory(self._worker.parent)
            with self._worker.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                    return
                yield True

    def _n_done(self) -> int:
        try:
            return int(self._done.read_bytes() or b"0")
        except (FileNotFoundError, ValueError):
            return 0


def _ends_whole(file: BinaryIO) -> bool:
    """Whether the last line is not one that a killed process left half."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parsed(line: bytes) -> Late | None:
    """None for a line that a killed process left half."""
    try:
        return Late(**json.loads(line))
    except (ValueError, TypeError):
        return None
