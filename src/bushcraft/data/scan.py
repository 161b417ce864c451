"""The first pass over the input: what documents there are, and those that the split and the tokenizer may need.

Per task: `scan/NNNNN.records` (one `split.RECORD` a document), `scan/NNNNN.documents` (the documents of small
rank, whole), and the record `scan/NNNNN` with the counts.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from bushcraft.data.examples import ExampleReader, plain
from bushcraft.data.journal import Journal
from bushcraft.data.readers import Document, documents
from bushcraft.data.sources import OnBad
from bushcraft.data.split import RECORD, SAMPLE_HEAD, Bounds, Records, Role
from bushcraft.data.streams import pieces
from bushcraft.data.tasks import Task
from bushcraft.errors import DataError
from bushcraft.store.durable import machine_errors

MOST_MESSAGES = 20
"""Bad inputs that a task lists; beyond, it counts them."""
RECORDS_A_UNIT = 1_000_000
_HEADER = struct.Struct("<QQI")


def read_task(task: Task, column: str, on_bad: OnBad, examples: ExampleReader | None = None) -> Iterator[Document]:
    """The documents of a task in order, empty ones included: every pass counts them alike."""
    for part in task.slices:
        yield from documents(part, column, on_bad, examples)


def record_of(text: bytes) -> tuple[int, int, int]:
    """A document as `split.RECORD`: rank, rest of the hash, size."""
    digest = blake3(text).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"), len(text)


def scan_task(
    journal: Journal, task: Task, column: str, skip_bad: bool, retained: int, examples: ExampleReader | None = None
) -> None:
    """Scan a task and note it down; documents below the rank `retained` are kept whole on disk.

    Errors: `DataError` at the first bad input, unless those are skipped; `StoreError`.
    """
    bad: list[str] = []
    n_bad = n_documents = n_bytes = 0

    def on_bad(error: DataError) -> None:
        nonlocal n_bad
        if not skip_bad:
            raise error
        n_bad += 1
        if len(bad) < MOST_MESSAGES:
            bad.append(error.message)

    with ExitStack() as files:
        records = files.enter_context(journal.new_file(f"scan/{task.index:05d}.records"))
        kept = files.enter_context(journal.new_file(f"scan/{task.index:05d}.documents"))
        for index, document in enumerate(read_task(task, column, on_bad, examples)):
            record = record_of(document.text)
            records.write(np.array(record, RECORD).tobytes())
            n_documents += 1
            n_bytes += len(document.text)
            if record[0] < retained and document.text:
                _write_document(kept, index, document)
    journal.write(f"scan/{task.index:05d}", {"documents": n_documents, "bytes": n_bytes, "n_bad": n_bad, "bad": bad})


@dataclass(frozen=True)
class Scan:
    """What the finished scan of all tasks says. Records come in units, so that they need not all be in memory."""

    journal: Journal
    counts: tuple[int, ...]
    """Documents of each task."""

    @property
    def units(self) -> list[tuple[int, int, int]]:
        """(task, first document, last + 1) of each unit."""
        return [
            (task, first, min(first + RECORDS_A_UNIT, count))
            for task, count in enumerate(self.counts)
            for first in range(0, count, RECORDS_A_UNIT)
        ]

    def records(self, unit: int) -> Records:
        """The records of a unit."""
        task, first, last = self.units[unit]
        path = self.journal.file(f"scan/{task:05d}.records")
        with machine_errors("read", path):
            return np.fromfile(path, RECORD, last - first, offset=first * RECORD.itemsize)

    def roles(self, task: int) -> NDArray[np.uint8]:
        """The `Role` of each document of a task, once that is decided."""
        path = self.journal.file(f"roles/{task:05d}")
        with machine_errors("read", path):
            return np.fromfile(path, np.uint8)

    def heldout(self) -> Iterator[Document]:
        """All documents chosen to be held out."""
        for task in range(len(self.counts)):
            for document, role in self._retained(task):
                if role == Role.HELDOUT:
                    yield document

    def sample(self, bounds: Bounds) -> Iterator[str]:
        """The training text for the tokenizer."""
        for task in range(len(self.counts)):
            for document, role in self._retained(task):
                if role == Role.TRAIN and record_of(document.text)[0] < bounds.sample:
                    yield plain(next(pieces(document.text, SAMPLE_HEAD))).decode()

    def _retained(self, task: int) -> Iterator[tuple[Document, int]]:
        roles = self.roles(task)
        path = self.journal.file(f"scan/{task:05d}.documents")
        with machine_errors("read", path), path.open("rb") as file:
            while header := file.read(_HEADER.size):
                index, size, name_size = _HEADER.unpack(header)
                name = file.read(name_size).decode()
                yield Document(name, file.read(size)), int(roles[index])


def _write_document(file: IO[bytes], index: int, document: Document) -> None:
    name = document.name.encode(errors="replace")
    file.write(_HEADER.pack(index, len(document.text), len(name)) + name + document.text)
