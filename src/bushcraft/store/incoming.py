"""Files on their way into a depot, each one locked by the process that writes it.

The kernel drops a lock (flock) when the process ends, however it ends, and in every container of the machine. So a
file here that nobody has locked was left by a process that was killed, and the next one that writes removes it. On a
file system that many machines share, this holds where its locks do, which the lock of a run's ledger needs as well.
"""

import contextlib
import fcntl
import os
import secrets
import sys
from pathlib import Path

from blake3 import blake3

from bushcraft.store.durable import machine_errors

BLOCK_BYTES = 1024 * 1024
"""Written and hashed at a time: what a processor's own cache holds."""


class IncomingFile:
    """A new file in `directory`, open for writing and locked until `close`, which gives it up unless it was moved.

    What is written is hashed on its way, while it is still in the processor's cache, and goes to the disk at once: a
    kernel left to itself begins when memory fills or `fsync` asks, and half of the time the disk has nothing to do.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._hasher = blake3()
        self._on_its_way = 0
        while True:
            self.path = directory / f"{os.getpid()}-{secrets.token_hex(8)}"
            self.file = self.path.open("xb")
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX)
            except OSError:
                self.close()
                raise
            if os.fstat(self.file.fileno()).st_nlink:
                break
            self.file.close()  # it was found and removed before it was locked

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Errors: OSError."""
        view = memoryview(data)
        for begin in range(0, len(view), BLOCK_BYTES):
            block = view[begin : begin + BLOCK_BYTES]
            self.file.write(block)
            self._hasher.update(block)
            self.size += len(block)
            if self.size - self._on_its_way >= BLOCK_BYTES:
                self._send_to_disk()

    def finish(self) -> str:
        """Hand all of it to the kernel; the BLAKE3 hash of what was written. Errors: `StoreError`."""
        with machine_errors("write", self.path):
            self.file.flush()
        return self._hasher.hexdigest()

    def _send_to_disk(self) -> None:
        """Have the kernel begin to write what it holds of the file; pages on their way stay in its cache.

        Linux begins to write what it is told that nobody will need (mm/fadvise.c). An error is told by `fsync`.
        """
        self.file.flush()
        if sys.platform == "linux":
            os.posix_fadvise(self.file.fileno(), self._on_its_way, self.size - self._on_its_way, os.POSIX_FADV_DONTNEED)
        self._on_its_way = self.size

    def close(self) -> None:
        """Remove the file, if it still lies here, and its lock."""
        with contextlib.suppress(OSError):  # a disk that fails: the next writer removes it
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk: what was not written yet need not be
            self.file.close()

    def __enter__(self) -> "IncomingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_abandoned(directory: Path) -> None:
    """Remove what no living process writes."""
    for path in directory.iterdir() if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, PermissionError, IsADirectoryError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
