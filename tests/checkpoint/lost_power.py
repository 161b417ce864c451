"""What a disk holds after a loss of power: what was synced, and of what was not any part.

A file has the bytes of its last fsync, a directory the names of its last fsync (POSIX promises no more: a rename or a
new file is durable when its directory was synced). Of later bytes and names each may have reached the disk or not.
"""

import os
import pickle
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SyncedDisk:
    """What is durable below a directory, by inodes."""

    files: dict[int, bytes] = field(default_factory=dict)
    directories: dict[int, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "SyncedDisk":
        """All that is there now is durable."""
        disk = cls()
        for directory, _, names in os.walk(root):
            disk.directories[Path(directory).stat().st_ino] = _entries(directory)
            for name in names:
                path = Path(directory, name)
                disk.files[path.stat().st_ino] = path.read_bytes()
        return disk

    def synced(self, descriptor: int) -> None:
        """It was given to fsync, which has returned."""
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            self.directories[about.st_ino] = _entries(descriptor)
        else:
            self.files[about.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def forget_removed(self, root: Path) -> None:
        """The kernel may give the inode of a removed file to another one."""
        there = {inode for directory, _, _ in os.walk(root) for inode in _entries(directory).values()}
        there.add(root.stat().st_ino)
        self.files = {inode: data for inode, data in self.files.items() if inode in there}
        self.directories = {inode: names for inode, names in self.directories.items() if inode in there}

    def write(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def read(path: Path) -> "SyncedDisk":
        disk: SyncedDisk = pickle.loads(path.read_bytes())
        return disk


class Unlucky(random.Random):
    """Nothing reached the disk but what was synced."""

    def random(self) -> float:
        return 0.0

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return seq[0]


def lose_power(root: Path, disk: SyncedDisk, rng: random.Random) -> None:
    """Make the directory what it may be after the machine has come up again."""
    after = root.with_name(f"{root.name}-after")
    now = {
        inode: Path(directory, name) for directory, _, _ in os.walk(root) for name, inode in _entries(directory).items()
    }
    _rebuild(root.stat().st_ino, after, disk, now | {root.stat().st_ino: root}, rng)
    shutil.rmtree(root)
    after.rename(root)


def _rebuild(inode: int, target: Path, disk: SyncedDisk, now: dict[int, Path], rng: random.Random) -> None:
    there = now.get(inode)
    if inode in disk.directories or (there is not None and there.is_dir()):
        target.mkdir()
        durable, current = disk.directories.get(inode, {}), _entries(there) if there else {}
        for name in sorted({*durable, *current}):
            chosen = (durable if rng.random() < 0.5 else current).get(name)
            if chosen is not None:
                _rebuild(chosen, target / name, disk, now, rng)
        return
    written = there.read_bytes() if there else b""
    synced = disk.files.get(inode, b"")
    target.write_bytes(rng.choice([synced, written, synced or written[: len(written) // 2]]))


def _entries(directory: str | Path | int) -> dict[str, int]:
    with os.scandir(directory) as found:
        return {entry.name: entry.inode() for entry in found}
