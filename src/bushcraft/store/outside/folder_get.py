"""Folders and objects out of a depot: verified, and there as a whole or not at all.

What arrives is written beside the target and renamed at the end. A get of a folder that was killed leaves it there, and
the next one keeps every block of it that is right.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import xxhash
from blake3 import blake3

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.durable import fsync_directory, machine_errors
from bushcraft.store.outside.blocks import BLOCK_BYTES, ObjectFile
from bushcraft.store.outside.folder import Progress, no_progress
from bushcraft.store.outside.folder_manifest import FolderFile, FolderManifest, find_folder

THREADS = 8
"""Blocks on their way at a time: a bucket answers late, but to many."""


def get_folder(depot: Depot, name_or_manifest: str, target: Path, progress: Progress = no_progress) -> str:
    """Write a published folder as the new directory `target`; the manifest's name.

    `target` must not be there, or be an empty directory. Errors: `StoreError` and its kinds; then it is as before.
    """
    name, manifest = find_folder(depot, name_or_manifest)
    _check_free(target)
    place = target.absolute().with_name(f".{target.absolute().name}.{name[:16]}.partial")
    with machine_errors("write", place), _locked(place, target):
        directories = _all_directories(manifest)
        for directory in directories:
            (place / directory).mkdir(exist_ok=True)
        _write_blocks(depot, manifest, place, progress)
        _finish_files(manifest, place)
        for directory in reversed(directories):
            fsync_directory(place / directory)
        place.chmod(0o755)
        fsync_directory(place)
        place.rename(target)
        fsync_directory(place.parent)
    return name


def get_object(depot: Depot, name: str, target: Path, progress: Progress = no_progress) -> None:
    """Write one object as the new file `target`. Errors: `StoreError` and its kinds; then there is no such file."""
    _check_free(target)
    size, place = depot.size(name), target.absolute().with_name(f".{target.name}.{os.getpid()}.partial")
    with machine_errors("write", target):
        try:
            with place.open("xb") as file:
                hasher = blake3()
                for begin in range(0, size, BLOCK_BYTES):
                    data = depot.fetch(name, begin, min(begin + BLOCK_BYTES, size))
                    hasher.update(data)
                    file.write(data)
                    progress(begin + len(data), size)
                if hasher.hexdigest() != name:
                    file.seek(0)
                    file.write(depot.read(name))  # all of it in memory, once: it tries the other copies
                    file.truncate()
                file.flush()
                os.fsync(file.fileno())
            place.rename(target)
        finally:
            place.unlink(missing_ok=True)
        fsync_directory(place.parent)


def _check_free(target: Path) -> None:
    with machine_errors("write", target):
        is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        if os.path.lexists(target) and not is_empty:
            raise StoreError(f"{target} is there already", "Name a new path, or move this one away")


@contextmanager
def _locked(place: Path, target: Path) -> Iterator[None]:
    """Make the directory `place`, or go on with the one that was left there; nobody else writes in it meanwhile."""
    with contextlib.suppress(FileExistsError):
        place.mkdir(0o700)
    about = place.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        raise StoreError(f"{place} is not ours", "Remove it, or name another path")
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"another process gets {target} now", "Wait for it, or name another path") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _all_directories(manifest: FolderManifest) -> list[str]:
    """Parents first."""
    found = set(manifest.directories)
    for path in [*(file.path for file in manifest.files), *manifest.directories]:
        parts = path.split("/")
        found |= {"/".join(parts[:n]) for n in range(1, len(parts))}
    return sorted(found, key=lambda path: path.split("/"))


@dataclass(frozen=True)
class _Block:
    """What is written by one thread at a time."""

    place: Path
    about: FolderFile
    source: ObjectFile
    index: int

    def write(self) -> int:
        """How many bytes of the file are right now that may not have been before."""
        begin = self.source.begins[self.index]
        size = min(BLOCK_BYTES, self.about.size - begin)
        descriptor = os.open(self.place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _mode(self.about))
        with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123 - a path cannot refuse a symbolic link
            there = os.pread(descriptor, size, begin)
            if xxhash.xxh3_128_hexdigest(there) != self.about.chunks[self.index]:
                file.seek(begin)
                left = memoryview(self.source.block(self.index))
                while left:
                    left = left[file.write(left) :]
        return size


def _write_blocks(depot: Depot, manifest: FolderManifest, place: Path, progress: Progress) -> None:
    blocks = (
        _Block(place / about.path, about, source, index)
        for about in manifest.files
        for source in [ObjectFile(depot, about.object, about.size, about.chunks)]
        for index in range(len(source.begins))
    )
    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(blocks, 4 * THREADS)):  # what waits is bounded, and so is what follows an error
            for n_bytes in pool.map(_Block.write, some):
                done += n_bytes
                progress(done, manifest.n_bytes)


def _finish_files(manifest: FolderManifest, place: Path) -> None:
    """Empty files have no block; what a file had behind its end goes; then all of it is durable."""
    for about in manifest.files:
        descriptor = os.open(place / about.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _mode(about))
        try:
            os.ftruncate(descriptor, about.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode(about: FolderFile) -> int:
    """As for any new file: what the umask leaves of it."""
    return 0o777 if about.mode & 0o111 else 0o666
