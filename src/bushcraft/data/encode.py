"""The second pass over the input: training documents → packs, each compared with the held-out ones on its way.

Per task the record `encode/NNNNN`: its packs, and which held-out documents its training documents contain.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from bushcraft.data.duplicates import HeldoutIndex
from bushcraft.data.examples import ExampleReader, plain
from bushcraft.data.readers import Document
from bushcraft.data.scan import Scan, read_task, record_of
from bushcraft.data.split import RECORD, Records, Role
from bushcraft.data.streams import pieces
from bushcraft.data.tasks import Task
from bushcraft.data.tokenizer import TextTokenizer, load_tokenizer, token_itemsize
from bushcraft.errors import DataError
from bushcraft.store.depot import Depot
from bushcraft.store.pack import PackEntry, PackWriter

LARGEST_PACK = 256 << 20
"""Bytes of text; a task over one large compressed file makes several packs."""
MOST_DOCUMENTS = 200_000
"""Documents of a pack: their names and places are in memory until it is sealed."""
HELDOUT_INDEX = "heldout.index"
HELDOUT_TEXT = "heldout.text"
_PIECE_BYTES = 1 << 20


class PackSeries:
    """Writes documents into as many packs as it takes."""

    def __init__(self, depot: Depot, tokenizer: TextTokenizer, examples: ExampleReader | None = None) -> None:
        """With `examples` documents are marked text."""
        self.depot, self.tokenizer, self.examples = depot, tokenizer, examples
        self.entries: list[PackEntry] = []
        self.longest = (0, "")
        """Tokens of the longest example, without its separator, and its name."""
        self.n_too_long = 0
        """Examples that were left out."""
        self._separator = np.array([tokenizer.separator_id])
        self._start()

    def add(self, document: Document) -> None:
        """Append a document: the separator, then its tokens."""
        tokens = self.examples.encode(document.text, self.tokenizer) if self.examples else None
        if self.examples and tokens is None:
            self.n_too_long += 1
            return
        if self._n_bytes >= LARGEST_PACK or self._n_documents >= MOST_DOCUMENTS:
            self.close()
            self._start()
        self._n_bytes += len(document.text)
        self._n_documents += 1
        self._writer.begin(document.name)
        if tokens is not None:
            self._writer.extend(tokens, len(plain(document.text)))
            self.longest = max(self.longest, (len(tokens) - 1, document.name), key=lambda pair: pair[0])
            return
        self._writer.extend(self._separator, 0)
        for piece in pieces(document.text, _PIECE_BYTES):
            self._writer.extend(self.tokenizer.encode(piece), len(piece))

    def close(self) -> list[PackEntry]:
        """Seal what is open; all packs so far."""
        entry = self._writer.close()
        if entry:
            self.entries.append(entry)
        return self.entries

    def discard(self) -> None:
        """Give up the pack in hand; a full disk is no reason to stop doing so."""
        with contextlib.suppress(OSError):
            self._writer.discard()

    def _start(self) -> None:
        # Marks take two more ids.
        itemsize = token_itemsize(self.tokenizer.vocab_size + 2) if self.examples else self.tokenizer.itemsize
        self._writer = PackWriter(self.depot, itemsize)
        self._n_bytes = self._n_documents = 0


def write_packs(series: PackSeries, documents: Iterator[Document]) -> list[PackEntry]:
    """Put all `documents` into packs. Errors: `StoreError`; whatever `documents` raises."""
    try:
        for document in documents:
            series.add(document)
        return series.close()
    except BaseException:
        series.discard()
        raise


def encode_task(
    scan: Scan,
    task: Task,
    column: str,
    depot: Depot,
    tokenizer: str,
    separator: str,
    examples: ExampleReader | None = None,
) -> None:
    """Tokenise the training documents of a task. `tokenizer`: its object name.

    Errors: `DataError` if the input changed since the scan; `StoreError`.
    """
    index = _index(scan.journal.file(HELDOUT_INDEX))
    contained: set[int] = set()

    def training() -> Iterator[Document]:
        for document, role in zip(
            _unchanged(scan, task, column, examples), scan.roles(task.index).tolist(), strict=True
        ):
            if role == Role.TRAIN:
                contained.update(index.contained_in(document.text))
                yield document

    series = PackSeries(depot, _tokenizer(depot, tokenizer, separator), examples)
    packs = write_packs(series, training())
    record = {
        "packs": [asdict(pack) for pack in packs],
        "contained": sorted(contained),
        "longest": series.longest,
        "n_too_long": series.n_too_long,
    }
    scan.journal.write(f"encode/{task.index:05d}", record)


def encode_heldout(
    scan: Scan,
    dropped: Sequence[int],
    depot: Depot,
    tokenizer: str,
    separator: str,
    examples: ExampleReader | None = None,
) -> tuple[PackSeries, list[int]]:
    """Tokenise the held-out documents but the `dropped` ones: their sealed packs, and the bytes of each document.

    Their text stays behind as one file, for the compressors to compare with.
    """
    series = PackSeries(depot, _tokenizer(depot, tokenizer, separator), examples)
    sizes: list[int] = []
    without = set(dropped)
    with scan.journal.new_file(HELDOUT_TEXT) as file:

        def scored() -> Iterator[Document]:
            for number, document in enumerate(scan.heldout()):
                if number not in without:
                    sizes.append(len(document.text))
                    file.write(document.text)
                    yield document

        write_packs(series, scored())
    return series, sizes


def packs_of(record: dict[str, Any]) -> list[PackEntry]:
    """The packs in a task's record."""
    return [PackEntry(**pack) for pack in record["packs"]]


def _unchanged(scan: Scan, task: Task, column: str, examples: ExampleReader | None) -> Iterator[Document]:
    """The documents of a task, as long as they are those of the scan. Bad input was reported by the scan."""
    records = _records(scan, task.index)
    place = task.slices[0].source.path if task.slices else "the input"
    changed = DataError(f"the input changed while it was read ({place} or later)", "Run the same command again")
    count = 0
    for document in read_task(task, column, _ignore, examples):
        if count >= scan.counts[task.index] or next(records) != record_of(document.text):
            raise changed
        count += 1
        yield document
    if count != scan.counts[task.index]:
        raise changed


def _records(scan: Scan, task: int) -> Iterator[tuple[int, int, int]]:
    """The records of a task, one after the other."""
    with scan.journal.file(f"scan/{task:05d}.records").open("rb") as file:
        for block in iter(partial(file.read, 4096 * RECORD.itemsize), b""):
            records: Records = np.frombuffer(block, RECORD)
            yield from records.tolist()


def _ignore(_error: DataError) -> None:
    """Known from the scan."""


@lru_cache(maxsize=1)
def _tokenizer(depot: Depot, name: str, separator: str) -> TextTokenizer:
    return load_tokenizer(depot.read(name), separator)


@lru_cache(maxsize=1)
def _index(path: Path) -> HeldoutIndex:
    return HeldoutIndex.load(path)
