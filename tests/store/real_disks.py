"""Small file systems of the real kind that fill up, become read-only and die; for root on Linux with loop devices."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN (linux/fs/ext4/ext4.h): from now on every operation is EIO."""
_WITHOUT_JOURNAL = struct.pack("I", 2)
"""EXT4_GOING_FLAGS_NOLOGFLUSH: what the journal holds in memory is lost, as by a loss of power."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists() or shutil.which("mkfs.ext4") is None,
    reason="mounting an ext4 file system needs root, a loop device and mkfs.ext4",
)


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, image: Path, root: Path) -> None:
        self._image, self.root = image, root

    def remount(self, how: str) -> None:
        """`how` is ro or rw."""
        _run("mount", "-o", f"remount,{how}", str(self.root))

    def die(self) -> None:
        """In the middle of whatever is going on."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_JOURNAL)
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """After a restart of the machine: the journal is played back.

        From a copy of the image: the kernel keeps the dead file system if another mount namespace has it still.
        """
        _run("umount", str(self.root))
        self._image = shutil.copy(self._image, self._image.with_name(f"again-{self._image.name}"))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.root))

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.root).free


@contextlib.contextmanager
def disk(directory: Path, mib: int = 8) -> Iterator[Disk]:
    """A new one of so many MiB, mounted below `directory`."""
    image, root = directory / "disk.img", directory / "disk"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(mib * 2**20)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    made = Disk(image, root)
    made.mount()
    try:
        yield made
    finally:
        _run("umount", str(root))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
