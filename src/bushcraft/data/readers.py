"""Slices of input files → documents of UTF-8 text, in bounded memory and always in the same order.

A slice is what one task reads of one file. Whoever reads it again gets the same documents, so that a build
can pass over its input twice and go on after a kill.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from bushcraft.data import parquet
from bushcraft.data.examples import ExampleReader
from bushcraft.data.sources import OnBad, Source, stop_on_bad
from bushcraft.data.streams import blocks, cut_near, file_errors, lines
from bushcraft.errors import DataError

LARGEST_TEXT = 16 << 20
"""A text file above this is cut into documents of `CUT_BYTES`: books end far below it, dumps do not."""
CUT_BYTES = 1 << 20
LARGEST_ROW = 64 << 20


@dataclass(frozen=True)
class Slice:
    """Bytes [begin, end) of a plain file, row groups [begin, end) of a parquet file, or all of a compressed one."""

    source: Source
    begin: int
    end: int
    cut_bytes: int = 0
    """Text: cut into documents of about this size; 0: one document a file, unless it is too large."""


@dataclass(frozen=True)
class Document:
    """One document: its name, by which a user finds it again, and its UTF-8 bytes."""

    name: str
    text: bytes


def documents(
    part: Slice, column: str = "text", on_bad: OnBad = stop_on_bad, examples: ExampleReader | None = None
) -> Iterator[Document]:
    """The documents of a slice in order. `on_bad` hears of what cannot be read, which is then left out.

    With `examples` the rows of JSON lines are instruction data, and their text is marked.
    Names: the file's; `FILE@BYTE` for a row or a cut of a text stream, `FILE@ROW` in parquet.
    """
    if part.source.kind == "jsonl":
        return _jsonl(part, column, on_bad, examples)
    reader = {"text": _text, "parquet": _parquet}[part.source.kind]
    return reader(part, column, on_bad)


def _text(part: Slice, _column: str, on_bad: OnBad) -> Iterator[Document]:
    source = part.source
    try:
        begin, end = _bounds(part, window=CUT_BYTES) if part.cut_bytes else (0, source.size)
        stream = blocks(source, begin, end)
        if not part.cut_bytes:
            head = b"".join(_until(stream, LARGEST_TEXT))
            if len(head) <= LARGEST_TEXT:
                if _is_utf8(head, source, 0, on_bad):
                    yield Document(source.name, head)
                return
            stream = chain([head], stream)
        for offset, text in _cuts(stream, begin, part.cut_bytes or CUT_BYTES):
            if _is_utf8(text, source, offset, on_bad):
                yield Document(f"{source.name}@{offset}", text)
    except DataError as error:
        on_bad(error)


def _jsonl(part: Slice, column: str, on_bad: OnBad, examples: ExampleReader | None) -> Iterator[Document]:
    source = part.source
    try:
        begin, end = (0, source.size) if source.compression else _bounds(part, window=None)
        for number, (offset, line) in enumerate(lines(blocks(source, begin, end), LARGEST_ROW), 1):
            if not line.strip():
                continue
            place = partial(_place, source, begin, number)
            text = _row_text(line, column, source, begin + offset, place, on_bad, examples)
            if text is not None:
                yield Document(f"{source.name}@{begin + offset}", text)
    except DataError as error:
        on_bad(error)


def _parquet(part: Slice, column: str, on_bad: OnBad) -> Iterator[Document]:
    source = part.source
    try:
        for row, text in parquet.rows(source.path, column, part.begin, part.end):
            if text is None:
                on_bad(DataError(f"{source.path} row {row}: {column!r} is null", "Drop such rows, or --on-bad skip"))
            else:
                yield Document(f"{source.name}@{row}", text)
    except DataError as error:
        on_bad(error)


def _bounds(part: Slice, window: int | None) -> tuple[int, int]:
    path, size = part.source.path, part.source.size
    return cut_near(path, part.begin, size, window), cut_near(path, part.end, size, window)


def _until(stream: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Blocks of the stream up to the one that makes it more than `size` bytes."""
    for block in stream:
        yield block
        size -= len(block)
        if size < 0:
            return


def _cuts(stream: Iterator[bytes], offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, text) of consecutive cuts: each ends behind the first newline after `size` bytes, or soon after."""
    pending = bytearray()
    for block in stream:
        pending += block
        while len(pending) >= 2 * size:
            end = pending.find(b"\n", size - 1, 2 * size - 4) + 1
            if end == 0:
                end = next(i for i in range(size, 2 * size) if pending[i] & 0xC0 != 0x80 or i == size + 3)
            yield offset, bytes(pending[:end])
            del pending[:end]
            offset += end
    if pending:
        yield offset, bytes(pending)


def _is_utf8(text: bytes, source: Source, offset: int, on_bad: OnBad) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        on_bad(_not_utf8(source, offset + error.start))
        return False
    return True


def _not_utf8(source: Source, offset: int) -> DataError:
    return DataError(
        f"{source.path} is not UTF-8 at byte {offset}", "Convert it (`iconv -t UTF-8`), or leave it out: --on-bad skip"
    )


def _row_text(
    line: bytes,
    column: str,
    source: Source,
    offset: int,
    place: Callable[[], str],
    on_bad: OnBad,
    examples: ExampleReader | None,
) -> bytes | None:
    """The text of one JSON row, or None after `on_bad` was told why there is none."""
    fix = "Correct the line, or leave such lines out by --on-bad skip"
    if len(line) > LARGEST_ROW:
        on_bad(DataError(f"{place()}: the line is longer than {LARGEST_ROW >> 20} MiB", "Split the row into several"))
        return None
    try:
        row = json.loads(line.decode())
        if examples:
            return examples.read(row)
        text = row[column]
        if isinstance(text, str):
            return text.encode()
        on_bad(DataError(f"{place()}: {column!r} is {type(text).__name__}, not text", fix))
    except DataError as error:
        on_bad(DataError(f"{place()}: {error.message}", error.next_step))
    except UnicodeDecodeError as error:
        on_bad(_not_utf8(source, offset + error.start))
    except UnicodeEncodeError:
        what = "the example" if examples else repr(column)
        on_bad(DataError(f"{place()}: {what} holds half of a surrogate pair, which is no text", fix))
    except (ValueError, RecursionError) as error:
        on_bad(DataError(f"{place()}: not JSON: {error}", fix))
    except KeyError:
        known = ", ".join(map(repr, row)) or "none"
        on_bad(DataError(f"{place()}: there is no column {column!r} (there is {known})", "Name it by --column"))
    except TypeError:
        on_bad(DataError(f"{place()}: the line is not a JSON object", fix))
    return None


def _place(source: Source, begin: int, number: int) -> str:
    """FILE:LINE. Lines before the slice are counted only now, when somebody wants to know."""
    if begin:
        with file_errors(source.path), Path(source.path).open("rb") as file:
            left = begin
            while left > 0 and (block := file.read(min(1 << 20, left))):
                number += block.count(b"\n")
                left -= len(block)
    return f"{source.path}:{number}"
