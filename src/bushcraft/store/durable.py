"""Bytes that survive a kill or a power cut: write, fsync, publish by an atomic rename, fsync the directory.

What the machine refuses (full disk, no permission) becomes a `StoreError` that names the path.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from bushcraft.errors import StoreError

_NEXT_STEP = {
    errno.ENOSPC: "Free some space or choose another --store; nothing written is lost, the same command goes on",
    errno.EDQUOT: "Raise the quota or choose another --store; nothing written is lost, the same command goes on",
    errno.EFBIG: "Raise the file size limit (ulimit -f); nothing written is lost, the same command goes on",
    errno.EACCES: "Give this user access or choose another --store",
    errno.EPERM: "Give this user access or choose another --store",
    errno.EROFS: "Choose a --store on a file system that can be written",
    errno.ENOENT: "Choose another --store",
    errno.ENOTDIR: "Choose a --store whose parents are directories",
    errno.EEXIST: "Choose a --store that is a directory",
    errno.EISDIR: "Move this directory away, or choose another --store",
    errno.ENAMETOOLONG: "Choose a shorter --store",
    errno.ELOOP: "Choose a --store without symbolic links that lead back to themselves",
    errno.EMFILE: "Raise the number of open files (ulimit -n)",
    errno.ESTALE: "Mount the file system again; nothing written is lost, the same command goes on",
    errno.ENOTCONN: "Mount the file system again; nothing written is lost, the same command goes on",
    errno.ETIMEDOUT: "Wait until the file system answers; nothing written is lost, the same command goes on",
    errno.ENOLCK: "Choose a --store on a file system with locks (flock)",
    errno.EOPNOTSUPP: "Choose a --store on a file system with locks (flock)",
    errno.EIO: "The disk fails: move the store to another one",
}


@contextlib.contextmanager
def machine_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the machine refuses while we `action` (such as "write") `path` into one `StoreError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NEXT_STEP:
            raise
        where = error.filename or path
        raise StoreError(f"cannot {action} {where}: {os.strerror(error.errno)}", _NEXT_STEP[error.errno]) from error


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable (POSIX: renaming a file does not sync its directory)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create `directory` and its parents, durably."""
    if directory.is_dir():
        return
    if directory.parent != directory:
        make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    fsync_directory(directory.parent)


def publish_file(temporary: Path, target: Path) -> None:
    """Give a finished file its name: all of its bytes are durable before the name is."""
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    make_directory(target.parent)
    temporary.replace(target)
    fsync_directory(target.parent)


def write_atomically(target: Path, data: bytes) -> None:
    """Replace `target` by `data`: a reader sees the old bytes or the new ones, also after a kill."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with machine_errors("write", target):
        make_directory(target.parent)
        try:
            temporary.write_bytes(data)
            publish_file(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
