"""Folders into a depot and out of it, each as a whole: who reads sees all of a published folder, or the one before."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import xxhash
from blake3 import blake3

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot, ref_path
from bushcraft.store.durable import machine_errors
from bushcraft.store.outside.blocks import BLOCK_BYTES
from bushcraft.store.outside.folder_manifest import FolderFile, FolderManifest, read_folder, write_folder

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


def no_progress(done: int, total: int) -> None:
    """For who does not watch."""


def put_folder(
    depot: Depot, name: str, folder: Path, progress: Progress = no_progress, follow_links: bool = False
) -> str:
    """Publish a folder, or a single file as a folder that holds it, as the newest `folders/NAME`; the manifest's name.

    Kept are the bytes, the names, whether a file can be executed, and empty directories. With `follow_links` a
    symbolic link to a file becomes that file. Nothing is published if anything changed meanwhile.
    Errors: `StoreError` that names what is no plain file, cannot be read, or changed.
    """
    ref_path(f"folders/{name}")
    found = _scan(folder, follow_links)
    before = _newest_files(depot, name)
    done, total, files = 0, sum(file.size for file in found.files), []
    for file in found.files:
        report = partial(_report, progress, done, total)
        files.append(_unchanged(depot, file, before.get(file.path), report) or _put_file(depot, file, report))
        done += file.size
    if (changed := found.difference(_scan(folder, follow_links))) is not None:
        raise _changed(folder / changed)
    manifest = write_folder(depot, FolderManifest(files=tuple(files), directories=found.empty_directories))
    depot.publish(f"folders/{name}", manifest)
    return manifest


def _report(progress: Progress, before: int, total: int, of_this_file: int) -> None:
    progress(before + of_this_file, total)


@dataclass(frozen=True)
class _Found:
    """A file as it was when the folder was looked through."""

    place: Path
    path: str
    """In the folder."""
    size: int
    mode: Literal[0o644, 0o755]
    stamp: tuple[int, ...]
    """Changes whenever the file does."""


@dataclass(frozen=True)
class _Scan:
    files: tuple[_Found, ...]
    empty_directories: tuple[str, ...]

    def difference(self, other: "_Scan") -> str | None:
        """A path that differs, if one does."""
        one = dict.fromkeys(self.empty_directories) | {file.path: file for file in self.files}
        two = dict.fromkeys(other.empty_directories) | {file.path: file for file in other.files}
        return min((path for path, _ in one.items() ^ two.items()), default=None)


def _scan(folder: Path, follow_links: bool) -> _Scan:
    with _reading(folder):
        about = folder.stat()
        if not stat.S_ISDIR(about.st_mode):
            return _Scan((_found(folder, folder.name, follow_links=True),), ())
    files, empty = [], []
    for place in _directories(folder):
        with _reading(place):
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        if not entries and place != folder:
            empty.append(place.relative_to(folder).as_posix())
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                with _reading(path):
                    files.append(_found(path, path.relative_to(folder).as_posix(), follow_links))
    return _Scan(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(empty)))


def _directories(folder: Path) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        raise error

    with _reading(folder):
        for place, _, _ in os.walk(folder, onerror=refused):
            yield Path(place)


def _found(place: Path, path: str, follow_links: bool) -> _Found:
    about = place.stat() if follow_links else place.lstat()
    if stat.S_ISLNK(about.st_mode):
        raise StoreError(f"{place} is a symbolic link", "Follow links to files by --follow-links, or leave it out")
    if not stat.S_ISREG(about.st_mode):
        raise StoreError(f"{place} is no plain file", "Leave it out: a published folder has files and directories only")
    stamp = (about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
    return _Found(place, path, about.st_size, 0o755 if about.st_mode & 0o111 else 0o644, stamp)


def _newest_files(depot: Depot, name: str) -> dict[str, FolderFile]:
    """Those of the version before, by their paths; none if it cannot be read."""
    manifest = depot.latest(f"folders/{name}")
    try:
        return {file.path: file for file in read_folder(depot, manifest).files} if manifest else {}
    except StoreError:
        return {}


def _unchanged(
    depot: Depot, file: _Found, before: FolderFile | None, report: Callable[[int], None]
) -> FolderFile | None:
    """What the version before has, if the bytes are the same and lie there well: nothing is written then."""
    if before is None or before.size != file.size:
        return None
    hasher = blake3()
    for block in _blocks(file, report):
        hasher.update(block)
    same = hasher.hexdigest() == before.object and depot.holds(before.object, before.size)
    return before.model_copy(update={"mode": file.mode}) if same else None


def _put_file(depot: Depot, file: _Found, report: Callable[[int], None]) -> FolderFile:
    checksums = []
    with depot.new_file() as new:
        for block in _blocks(file, report):
            checksums.append(xxhash.xxh3_128_hexdigest(block))
            with machine_errors("write", new.path):
                new.write(block)
        name = depot.put_file(new)
    return FolderFile(path=file.path, size=file.size, object=name, mode=file.mode, chunks=tuple(checksums))


def _blocks(file: _Found, report: Callable[[int], None]) -> Iterator[bytes]:
    """All bytes of it. Errors: `StoreError` if they are more or fewer than they were."""
    n_bytes = 0
    with _reading(file.place):
        source = file.place.open("rb")
    with source:
        while block := _next_block(file.place, source.fileno()):
            n_bytes += len(block)
            if n_bytes > file.size:
                break
            yield block
            report(n_bytes)
    if n_bytes != file.size:
        raise _changed(file.place)


def _next_block(place: Path, descriptor: int) -> bytes:
    """A whole block: a read gives less where a file system is slow, or the file ends."""
    pieces, missing = [], BLOCK_BYTES
    with _reading(place):
        while missing and (piece := os.read(descriptor, missing)):
            pieces.append(piece)
            missing -= len(piece)
    return b"".join(pieces)


def _changed(place: Path) -> StoreError:
    return StoreError(f"{place} changed while it was read", "Nothing was published: put it when nobody writes there")


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or place
        steps = {errno.ENOENT: "Name a folder or a file that is there", errno.EACCES: "Give this user access"}
        raise StoreError(
            f"cannot read {where}: {os.strerror(error.errno or errno.EIO)}",
            steps.get(error.errno or 0, "Nothing was published: the same command goes on when it can be read"),
        ) from None
