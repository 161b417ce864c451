"""Files on their way into a depot, each one locked by the process that writes it.

The kernel drops a lock (flock) when the process ends, however it ends, and in every container of the machine. So a
file here that nobody has locked was left by a process that was killed, and the next one that writes removes it. On a
file system that many machines share, this holds where its locks do, which the lock of a run's ledger needs as well.
"""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from blake3 import blake3

from bushcraft.store.durable import machine_errors


class IncomingFile:
    """A new file in `directory`, open for writing and locked until `close`, which gives it up unless it was moved.

    What is written is hashed on its way, while it is still in the processor's cache.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._hasher = blake3()
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
        """Append `data`."""
        self.file.write(data)
        self._hasher.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Hand all of it to the kernel; the BLAKE3 hash of what was written. Errors: `StoreError`."""
        with machine_errors("write", self.path):
            self.file.flush()
        return self._hasher.hexdigest()

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
