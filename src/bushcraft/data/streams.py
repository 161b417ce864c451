"""Byte streams of input files: plain ranges cut at newlines, gzip and Zstandard, each with honest errors.

Two readers of neighbouring ranges agree on the cut between them without talking: `cut_near` is a pure
function of the file and an offset.
"""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from bushcraft.data.sources import Source
from bushcraft.errors import DataError

BLOCK_BYTES = 1 << 20
_CONTINUATION = 0xC0
"""The two top bits that mark, as 10, a byte inside a UTF-8 character (RFC 3629, section 3)."""


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn what the machine or a decompressor says about an input file into one `DataError`."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"{path} is truncated or corrupted: {error}", "Fetch the file again, or leave it out by --on-bad skip"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", "Check the disk and the access rights, then run it again"
        ) from error


def blocks(source: Source, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The decompressed bytes of `source`, in blocks of about 1 MiB; [begin, end) only where it is not compressed.

    Errors: `DataError` where the file cannot be read or ends too early.
    """
    with file_errors(source.path):
        if source.compression == "gz":
            with gzip.open(source.path, "rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        elif source.compression == "zst":
            yield from _zstandard_blocks(source.path)
        else:
            yield from _plain_blocks(source.path, begin, source.size if end is None else end)


def cut_near(path: str, offset: int, size: int, window: int | None) -> int:
    """Where a file of `size` bytes is cut at or after `offset`: behind the first newline.

    Without a newline in the next `window` bytes (None: however far), before the next whole UTF-8 character.
    """
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    with file_errors(path), Path(path).open("rb") as file:
        place = offset - 1
        stop = size if window is None else min(size, offset + window)
        file.seek(place)
        while place < stop:
            block = file.read(min(BLOCK_BYTES, stop - place))
            if not block:
                break
            newline = block.find(b"\n")
            if newline >= 0:
                return place + newline + 1
            place += len(block)
        if window is None:
            return size
        file.seek(offset)
        head = file.read(4)
    return offset + next((i for i, byte in enumerate(head) if byte & _CONTINUATION != 0x80), len(head))


def lines(stream: Iterator[bytes], longest: int) -> Iterator[tuple[int, bytes]]:
    """(offset in the stream, line without its newline). A line above `longest` bytes comes cut to `longest` + 1."""
    pending, offset = bytearray(), 0
    dropped = 0
    for block in stream:
        begin = 0
        while (newline := block.find(b"\n", begin)) >= 0:
            pending += block[begin:newline]
            yield offset, bytes(pending[: longest + 1])
            offset += len(pending) + dropped + 1
            pending, dropped, begin = bytearray(), 0, newline + 1
        pending += block[begin:]
        if len(pending) > longest + 1:
            dropped += len(pending) - longest - 1
            del pending[longest + 1 :]
    if pending:
        yield offset, bytes(pending)


def pieces(text: bytes, longest: int) -> Iterator[bytes]:
    """`text` cut into pieces of at most `longest` bytes: behind the last newline, else before a character."""
    begin = 0
    while len(text) - begin > longest:
        end = text.rfind(b"\n", begin, begin + longest) + 1
        if end <= begin:
            end = begin + longest
            while end > begin + 1 and text[end] & _CONTINUATION == 0x80:
                end -= 1
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def _plain_blocks(path: str, begin: int, end: int) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        file.seek(begin)
        while begin < end:
            block = file.read(min(BLOCK_BYTES, end - begin))
            if not block:
                raise EOFError(f"it ends at byte {begin}, before byte {end}")
            begin += len(block)
            yield block


def _zstandard_blocks(path: str) -> Iterator[bytes]:
    """All frames of a .zst file. `stream_reader` would take a truncated file for a complete one."""
    compressed = 16 * 1024  # a block of zeros may come out thousands of times larger
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        frame, waiting = None, b""
        while waiting or (waiting := file.read(compressed)):
            if frame is None:
                frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            if block := frame.decompress(waiting):
                yield block
            waiting = b""
            if frame.eof:
                waiting, frame = frame.unused_data, None
        if frame is not None:
            raise EOFError(f"the compressed stream goes on past its end at byte {size}")
