"""Read-only files whose bytes come in blocks, each of them verified as a whole before any byte of it is given.

A reader that wants a few bytes reads and verifies the block around them; `BlockCache` keeps it for the next bytes.
"""

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import xxhash
from blake3 import blake3

from bushcraft.store.depot import Depot, object_name

BLOCK_BYTES = 4 * 1024 * 1024
"""Of an object: little more than asked for is read, and a checksum of 16 bytes costs nothing beside it."""


class File(ABC):
    """Bytes that never change; where a name gets other bytes, that is another `File`."""

    identity: str
    """Equal only for equal bytes."""
    size: int
    """Bytes."""
    begins: Sequence[int]
    """Where each block begins, ascending; the last one ends with the file."""
    executable: bool = False

    @abstractmethod
    def block(self, index: int) -> bytes:
        """The verified bytes of one block. Errors: `StoreError` and its kinds."""

    def read(self, begin: int, end: int, cache: "BlockCache | None" = None) -> bytes:
        """Bytes [begin, end), or fewer where the file ends, verified. Errors: `StoreError` and its kinds."""
        load = self.block if cache is None else partial(cache.block, self)
        return self.part(begin, end, [load(index) for index in self.indexes(begin, end)])

    def indexes(self, begin: int, end: int) -> range:
        """The blocks in which bytes [begin, end) lie."""
        end = min(end, self.size)
        if begin >= end:
            return range(0)
        return range(bisect_right(self.begins, begin) - 1, bisect_right(self.begins, end - 1))

    def part(self, begin: int, end: int, blocks: Sequence[bytes]) -> bytes:
        """Bytes [begin, end) out of the blocks in which they lie."""
        starts = [self.begins[index] for index in self.indexes(begin, end)]
        pieces = [data[max(begin - at, 0) : max(end - at, 0)] for at, data in zip(starts, blocks, strict=True)]
        return b"".join(pieces)


class BytesFile(File):
    """A file that is made of what was verified already, such as a manifest."""

    begins = (0,)

    def __init__(self, data: bytes) -> None:
        self.identity, self.size, self._data = object_name(data), len(data), data

    def block(self, index: int) -> bytes:  # noqa: ARG002 - there is one
        return self._data


class ObjectFile(File):
    """An object of a depot: with the xxh3-128 of each `BLOCK_BYTES` of it, each block is verified on its own.

    Without them the first read goes over the whole object, against its name, and remembers them.
    """

    def __init__(
        self, depot: Depot, name: str, size: int, checksums: Sequence[str] | None = None, executable: bool = False
    ) -> None:
        self.identity, self.size, self.executable = name, size, executable
        self.begins = range(0, size, BLOCK_BYTES)
        self._depot = depot
        self._checksums = checksums
        self._measuring = threading.Lock()

    def block(self, index: int) -> bytes:
        if self._checksums is None and len(self.begins) == 1:
            return self._depot.read(self.identity)
        with self._measuring:
            if self._checksums is None:
                self._checksums = self._measured()
        begin, checksum = self.begins[index], self._checksums[index]
        return self._depot.read_range(
            self.identity,
            begin,
            min(begin + BLOCK_BYTES, self.size),
            lambda data: xxhash.xxh3_128_hexdigest(data) == checksum,
        )

    def _measured(self) -> list[str]:
        whole, checksums = blake3(), []
        for begin in self.begins:
            data = self._depot.fetch(self.identity, begin, min(begin + BLOCK_BYTES, self.size))
            whole.update(data)
            checksums.append(xxhash.xxh3_128_hexdigest(data))
        if whole.hexdigest() == self.identity:
            return checksums
        data = self._depot.read(self.identity)  # all of it in memory, once: it tries the other copies
        return [xxhash.xxh3_128_hexdigest(data[begin : begin + BLOCK_BYTES]) for begin in self.begins]


class BlockCache:
    """The blocks that were read last, of any files; a block that many threads want is loaded once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._loading: dict[tuple[str, int], threading.Lock] = {}
        self._lock = threading.Lock()

    def block(self, file: File, index: int) -> bytes:
        """One block of `file`, verified. Errors as for `File.block`; the next call tries again."""
        key = (file.identity, index)
        with self._lock:
            if (known := self._known(key)) is not None:
                return known
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if (known := self._known(key)) is not None:
                    return known
            try:
                data = file.block(index)
                with self._lock:
                    self._keep(key, data)
            finally:
                with self._lock:
                    self._loading.pop(key, None)
        return data

    def at_hand(self, file: File, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of `file` if all of them are kept here."""
        with self._lock:
            blocks = [self._known((file.identity, index)) for index in file.indexes(begin, end)]
        known = [block for block in blocks if block is not None]
        return file.part(begin, end, known) if len(known) == len(blocks) else None

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Whether the block of that index of the file of that identity is kept."""
        return key in self._blocks

    def _known(self, key: tuple[str, int]) -> bytes | None:
        if key in self._blocks:
            self._blocks.move_to_end(key)
        return self._blocks.get(key)

    def _keep(self, key: tuple[str, int], data: bytes) -> None:
        self._blocks[key] = data
        self._n_bytes += len(data)
        while self._n_bytes > self._max_bytes and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._n_bytes -= len(oldest)
