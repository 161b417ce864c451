"""A rank's state in host memory that the saver's process shares: the step waits for this copy and for nothing else.

The memory is files of a memory file system, with the bytes that become objects. They are made once and used again, so
that a copy touches no page for the first time. Where that file system is too small, as in containers, the memory is
anonymous: saves are the same, and nothing of it outlives the process.
"""

import contextlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from bushcraft.checkpoint.placement import Block, file_sizes
from bushcraft.parallel.box import Part
from bushcraft.store.durable import machine_errors

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14): page tables now, not at the first write."""


class Snapshot:
    """One copy of a rank's state. `paths` are its files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: list[mmap.mmap] = []
        self._anonymous: list[int] = []
        """Descriptors of the files that have no name."""
        self.paths: list[Path] = []

    def prepare(self, blocks: list[Block]) -> None:
        """Have the memory for these blocks. Errors: `StoreError` if there is not so much."""
        sizes = file_sizes(blocks)
        if sizes == [len(mapped) for mapped in self._maps]:
            return
        self.release()
        with machine_errors("reserve memory in", self._directory):
            try:
                self._reserve_named(sizes)
            except OSError:
                self.release()
                if psutil.virtual_memory().available < sum(sizes):
                    raise
                self._reserve_anonymous(sizes)

    def _reserve_named(self, sizes: list[int]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for number, size in enumerate(sizes):
            path = self._directory / f"{number:05d}"
            self.paths.append(path)
            is_there = path.exists() and path.stat().st_size == size  # of a process that was killed
            with path.open("r+b" if is_there else "w+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                self._maps.append(_mapped(file.fileno(), size))

    def _reserve_anonymous(self, sizes: list[int]) -> None:
        for size in sizes:
            descriptor = os.memfd_create("snapshot")
            self._anonymous.append(descriptor)
            os.posix_fallocate(descriptor, 0, size)
            self._maps.append(_mapped(descriptor, size))
            self.paths.append(Path(f"/proc/{os.getpid()}/fd/{descriptor}"))

    def take(self, parts: Mapping[str, Part], blocks: list[Block]) -> None:
        """Copy what the blocks say, row-major, from the device if it is there."""
        for block in blocks:
            part = parts[block.name]
            source = part.tensor.detach()[block.box.within(part.box)]
            target = torch.frombuffer(
                self._maps[block.file], dtype=source.dtype, count=source.numel(), offset=block.begin
            )
            target.view(source.shape).copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give the memory back."""
        self._maps.clear()
        for descriptor in self._anonymous:
            os.close(descriptor)
        for path in [] if self._anonymous else self.paths:
            path.unlink(missing_ok=True)
        self._anonymous.clear()
        self.paths.clear()


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    mapped = mmap.mmap(descriptor, size)
    with contextlib.suppress(OSError):  # an older kernel: the first copy is slower
        mapped.madvise(_POPULATE_WRITE)
    if torch.cuda.is_available():  # so that copies from the device are asynchronous, and at the speed of the bus
        pinned = torch.frombuffer(mapped, dtype=torch.uint8)
        torch.cuda.cudart().cudaHostRegister(pinned.data_ptr(), size, 0)  # type: ignore[no-untyped-call]
    return mapped
