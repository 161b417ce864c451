"""Packs: one immutable object with many token sequences' worth of documents, verifiable frame by frame.

    magic "BCPACK1\\n"
    frames        token ids, little-endian, 256 KiB a frame (the last one may be shorter)
    documents     zstd: where each document starts (u64, tokens), how many text bytes it had (u64)
    names         zstd: the documents' names, UTF-8, parted by NUL
    footer        JSON header, a newline, then one xxh3-128 (16 bytes, big-endian as printed) a frame
    trailer       footer length (u64 little-endian), magic "BCPACKE\\n"

The footer's BLAKE3 stands in the data set's manifest (`PackEntry`), so that a reader trusts no byte that
it has not checked: manifest → footer → frame. Checksums of 16 bytes per 256 KiB cost 0.006 %.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.store.depot import Check, Depot, object_name
from bushcraft.store.durable import machine_errors
from bushcraft.store.incoming import IncomingFile

VERSION = 1
FRAME_BYTES = 256 * 1024
MAGIC = b"BCPACK1\n"
END_MAGIC = b"BCPACKE\n"
TRAILER_BYTES = 8 + len(END_MAGIC)
CHECKSUM_BYTES = 16


@dataclass(frozen=True)
class PackEntry:
    """What a data set's manifest says of one pack; enough to check everything in it."""

    object: str
    """BLAKE3 of the whole pack, its name in the depot."""
    footer: str
    """BLAKE3 of the footer."""
    n_bytes: int
    footer_bytes: int
    n_tokens: int
    n_documents: int
    n_text_bytes: int
    """UTF-8 bytes of the documents before tokenisation."""


class PackWriter:
    """Streams documents into a pack in bounded memory; `close` puts it into the depot.

    Nothing is visible in the depot before `close`.
    """

    def __init__(self, depot: Depot, itemsize: int) -> None:
        """`itemsize`: bytes of a token id, 2 or 4."""
        self.depot = depot
        self.dtype = np.dtype({2: "<u2", 4: "<u4"}[itemsize])
        self._file: IncomingFile | None = None
        self._pending = bytearray()
        self._checksums = bytearray()
        self._n_bytes = self._n_tokens = 0
        self._starts: list[int] = []
        self._text_bytes: list[int] = []
        self._names: list[str] = []

    def add(self, tokens: NDArray[Any], name: str, size_bytes: int) -> None:
        """Append one whole document: its token ids (the separator first), its name, its UTF-8 bytes."""
        self.begin(name)
        self.extend(tokens, size_bytes)

    def begin(self, name: str) -> None:
        """Start a document; `extend` gives its tokens in pieces."""
        self._starts.append(self._n_tokens)
        self._text_bytes.append(0)
        self._names.append(name.replace("\0", "�"))

    def extend(self, tokens: NDArray[Any], size_bytes: int) -> None:
        """Append tokens to the document in hand."""
        self._text_bytes[-1] += size_bytes
        self._n_tokens += len(tokens)
        self._pending += tokens.astype(self.dtype, copy=False).tobytes()
        while len(self._pending) >= FRAME_BYTES:
            self._write_frame(bytes(self._pending[:FRAME_BYTES]))
            del self._pending[:FRAME_BYTES]

    def close(self) -> PackEntry | None:
        """Seal the pack and put it into the depot; None if it holds no document."""
        if not self._starts:
            return None
        if self._pending:
            self._write_frame(bytes(self._pending))
        compress = zstandard.ZstdCompressor(level=6).compress
        documents = compress(np.array([self._starts, self._text_bytes], "<u8").tobytes())
        names = compress("\0".join(self._names).encode())
        header = {
            "format": "bushcraft-pack",
            "version": VERSION,
            "itemsize": self.dtype.itemsize,
            "frame_bytes": FRAME_BYTES,
            "n_tokens": self._n_tokens,
            "n_documents": len(self._starts),
            "n_text_bytes": sum(self._text_bytes),
            "documents": {"bytes": len(documents), "xxh3_128": xxhash.xxh3_128_hexdigest(documents)},
            "names": {"bytes": len(names), "xxh3_128": xxhash.xxh3_128_hexdigest(names)},
        }
        footer = json.dumps(header, separators=(",", ":")).encode() + b"\n" + bytes(self._checksums)
        self._write(documents + names + footer + len(footer).to_bytes(8, "little") + END_MAGIC)
        assert self._file is not None
        entry = PackEntry(
            object=self.depot.put_file(self._file),
            footer=object_name(footer),
            n_bytes=self._n_bytes,
            footer_bytes=len(footer),
            n_tokens=self._n_tokens,
            n_documents=len(self._starts),
            n_text_bytes=sum(self._text_bytes),
        )
        self._starts, self._names, self._text_bytes = [], [], []
        return entry

    def discard(self) -> None:
        """Give up what was written."""
        if self._file is not None:
            self._file.close()

    def _write_frame(self, frame: bytes) -> None:
        self._checksums += xxhash.xxh3_128_digest(frame)
        self._write(frame)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self.depot.new_file()
            data = MAGIC + data
        with machine_errors("write", self._file.path):
            self._file.write(data)
        self._n_bytes += len(data)


class PackReader:
    """Verified reads of one pack. The footer is read and checked here; documents and names when asked for.

    Errors: `StoreError` (missing, later version), `CorruptObjectError` that names the pack and the byte range.
    """

    def __init__(self, depot: Depot, entry: PackEntry) -> None:
        self.depot = depot
        self.entry = entry
        self._footer_begin = entry.n_bytes - TRAILER_BYTES - entry.footer_bytes
        footer_end = entry.n_bytes - TRAILER_BYTES
        trailer = entry.footer_bytes.to_bytes(8, "little") + END_MAGIC
        footer = self._read("footer", self._footer_begin, footer_end, lambda data: object_name(data) == entry.footer)
        self._read("trailer", footer_end, entry.n_bytes, trailer.__eq__)
        head, _, self._checksums = footer.partition(b"\n")
        self.header: dict[str, Any] = json.loads(head)
        if self.header["version"] > VERSION:
            raise StoreError(f"pack {entry.object} has format {self.header['version']}", "Install a newer bushcraft")
        if self.header["frame_bytes"] != FRAME_BYTES:
            raise StoreError(
                f"pack {entry.object} has frames of {self.header['frame_bytes']} bytes", f"Use {FRAME_BYTES}"
            )
        self._read("start", 0, len(MAGIC), MAGIC.__eq__)
        self.dtype = np.dtype({2: "<u2", 4: "<u4"}[self.header["itemsize"]])

    @property
    def n_frames(self) -> int:
        return len(self._checksums) // CHECKSUM_BYTES

    def frame(self, index: int) -> bytes:
        """The bytes of frame `index`, checked against the footer."""
        begin = len(MAGIC) + index * FRAME_BYTES
        end = min(begin + FRAME_BYTES, len(MAGIC) + self.entry.n_tokens * self.dtype.itemsize)
        expected = self._checksums[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES]
        return self._read(f"frame {index}", begin, end, lambda data: xxhash.xxh3_128_digest(data) == expected)

    def tokens(self, begin: int, end: int) -> NDArray[Any]:
        """Token ids [begin, end) of the pack, verified."""
        if begin == end:
            return np.empty(0, self.dtype)
        per_frame = FRAME_BYTES // self.dtype.itemsize
        first, last = begin // per_frame, (end - 1) // per_frame
        data = b"".join(self.frame(index) for index in range(first, last + 1))
        return np.frombuffer(data, self.dtype)[begin - first * per_frame : end - first * per_frame]

    @cached_property
    def _documents(self) -> NDArray[np.int64]:
        """(2, n_documents): first token, text bytes."""
        section = self._section("documents", self._documents_begin)
        return np.frombuffer(section, "<u8").astype(np.int64).reshape(2, -1)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first token of each document, (n_documents,)."""
        starts: NDArray[np.int64] = self._documents[0]
        return starts

    @property
    def text_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each document, (n_documents,)."""
        text_bytes: NDArray[np.int64] = self._documents[1]
        return text_bytes

    @cached_property
    def names(self) -> list[str]:
        """Name of each document."""
        begin = self._documents_begin + self.header["documents"]["bytes"]
        return self._section("names", begin).decode().split("\0")

    def documents(self) -> Iterator[tuple[str, NDArray[Any], int]]:
        """All documents in order: name, token ids (the separator first), text bytes."""
        bounds = [*self.starts.tolist(), self.entry.n_tokens]
        for i, name in enumerate(self.names):
            yield name, self.tokens(bounds[i], bounds[i + 1]), int(self.text_bytes[i])

    @property
    def _documents_begin(self) -> int:
        return len(MAGIC) + self.entry.n_tokens * self.dtype.itemsize

    def _section(self, kind: str, begin: int) -> bytes:
        about = self.header[kind]
        checksum = about["xxh3_128"]
        data = self._read(kind, begin, begin + about["bytes"], lambda data: xxhash.xxh3_128_hexdigest(data) == checksum)
        return zstandard.ZstdDecompressor().decompress(data)

    def _read(self, what: str, begin: int, end: int, good: Check) -> bytes:
        try:
            return self.depot.read_range(self.entry.object, begin, end, good)
        except CorruptObjectError:
            raise CorruptObjectError(
                f"pack {self.entry.object} is corrupted: {what}, bytes {begin}-{end}",
                "It was not used. Restore it from a copy of the depot, or build the data again, which repairs it",
            ) from None


def verify_pack(depot: Depot, entry: PackEntry) -> None:
    """Read every byte of a pack against its checksums; the error names the first bad byte range.

    Errors: `CorruptObjectError`, `StoreError` (missing).
    """
    reader = PackReader(depot, entry)
    for index in range(reader.n_frames):
        reader.frame(index)
    reader.starts, reader.names  # noqa: B018 - reading them checks them
    depot.verify(entry.object)
