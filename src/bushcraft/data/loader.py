"""Batches by position: verified, shuffled and packed, the same bytes on any machine.

The loader is the join of the order plane (which sequence) with the storage plane (which bytes). It has no
state: a position goes in, rows come out; what it remembers is only a cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bushcraft.data import packing
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.order import Order, Samples, Source
from bushcraft.data.tokens import TokenStream
from bushcraft.errors import DataError
from bushcraft.store.depot import Depot
from bushcraft.store.pack import FRAME_BYTES


@dataclass(frozen=True)
class Rows:
    """Packed sequences in the order of their positions."""

    tokens: NDArray[Any]
    """(N, sequence_length + 1) token ids: inputs are [:, :-1], targets [:, 1:]."""
    real: NDArray[np.int64]
    """(N,) how many of the targets are tokens of the corpus; of an example its tokens. The rest is padding."""
    pieces: packing.Pieces
    """Where documents begin in the inputs."""
    samples: Samples

    def part(self, begin: int, end: int) -> "Rows":
        """Rows [begin, end), a microbatch."""
        first, last = np.searchsorted(self.pieces.row, [begin, end])
        pieces = packing.Pieces(
            self.pieces.row[first:last] - begin, self.pieces.start[first:last], self.pieces.length[first:last]
        )
        samples = Samples(self.samples.source[begin:end], self.samples.epoch[begin:end], self.samples.index[begin:end])
        return Rows(self.tokens[begin:end], self.real[begin:end], pieces, samples)

    def digest(self) -> bytes:
        """16 bytes that name these sequences and every token in them."""
        digest = xxhash.xxh3_128()
        for column in (self.samples.source, self.samples.epoch, self.samples.index):
            digest.update(column.tobytes())
        digest.update(self.tokens.tobytes())
        return digest.digest()

    def digests(self) -> bytes:
        """16 bytes for each sequence, which name it and every token in it (a part of the run's receipt)."""
        names = np.stack([self.samples.source, self.samples.epoch, self.samples.index], 1).astype(np.int64)
        tokens = np.ascontiguousarray(self.tokens)
        return b"".join(
            xxhash.xxh3_128_digest(name.tobytes() + row.tobytes()) for name, row in zip(names, tokens, strict=True)
        )


@dataclass(frozen=True)
class SourceData:
    """A data set under the name that the recipe gives it."""

    name: str
    manifest: DatasetManifest
    stream: TokenStream


def open_source(
    depot: Depot, name: str, manifest: DatasetManifest, cache_bytes: int, split: str = "train"
) -> SourceData:
    """The token stream of one split of a data set."""
    return SourceData(name, manifest, TokenStream(depot, manifest.splits[split], manifest.itemsize, cache_bytes))


def check_length(manifest: DatasetManifest, sequence_length: int) -> None:
    """Errors: `DataError` if an example is longer than a sequence: none is ever cut."""
    examples = manifest.examples
    if examples and examples.longest > sequence_length:
        raise DataError(
            f"data set {manifest.name!r}: the example {examples.longest_name} has {examples.longest} tokens, and "
            f"run.sequence_length is {sequence_length}",
            f"Use at least {examples.longest}, or build it with --longest {sequence_length}",
        )


def order_source(source: SourceData, sequence_length: int) -> Source:
    """What the order plane has to know of a source: its size, and how many sequences one frame brings.

    Errors: `DataError` of `check_length`.
    """
    check_length(source.manifest, sequence_length)
    per_frame = FRAME_BYTES // source.manifest.itemsize
    if source.manifest.kind == "examples":
        n = int(source.stream.packs.n_documents.sum())
        return Source(source.name, n, block=max(1, per_frame * n // max(1, len(source.stream))))
    return Source(
        source.name,
        packing.n_sequences(len(source.stream), sequence_length),
        block=max(1, per_frame // sequence_length),
    )


class Loader:
    """rows(begin, end) for one run."""

    def __init__(self, sources: tuple[SourceData, ...], order: Order, sequence_length: int) -> None:
        self.sources = sources
        self.order = order
        self.sequence_length = sequence_length
        self._dtype = max((s.stream.dtype for s in sources), key=lambda dtype: dtype.itemsize)

    def rows(self, begin: int, end: int) -> Rows:
        """The sequences at positions [begin, end). Errors: `CorruptObjectError`, `StoreError`."""
        samples = self.order.samples(np.arange(begin, end))
        tokens = np.empty((end - begin, self.sequence_length + 1), self._dtype)
        real = np.empty(end - begin, np.int64)
        for s, source in enumerate(self.sources):
            mine = np.flatnonzero(samples.source == s)
            if not mine.size:
                continue
            index = samples.index[mine]
            rows, real[mine] = self._rows_of(source, index)
            if mine.size == end - begin:
                tokens = rows
            else:
                tokens[mine] = rows
        separator = self.sources[0].manifest.separator_id
        are_examples = np.array([source.manifest.kind == "examples" for source in self.sources])
        pieces = packing.pieces(tokens[:, :-1], separator, real, are_examples[samples.source])
        return Rows(tokens, real, pieces, samples)

    def explain(self, position: int) -> list[dict[str, Any]]:
        """The documents behind the sequence at `position`: name, source, and which of its tokens are in it."""
        sample = self.order.samples(np.array([position]))
        source = self.sources[int(sample.source[0])]
        first, last = self._bounds_of(source, sample.index[:1])
        found = []
        while first <= last:
            reader, place = source.stream.locate(first)
            document = int(np.searchsorted(reader.starts, place, side="right")) - 1
            begin = int(reader.starts[document])
            n_documents = reader.entry.n_documents
            end = int(reader.starts[document + 1]) if document + 1 < n_documents else reader.entry.n_tokens
            take = min(end - place, last + 1 - first)
            found.append(
                {
                    "source": source.name,
                    "epoch": int(sample.epoch[0]),
                    "index": int(sample.index[0]),
                    "document": reader.names[document],
                    "tokens": [place - begin, place - begin + take],
                    "of": end - begin,
                    "pack": reader.entry.object,
                }
            )
            first += take
        return found

    def _rows_of(self, source: SourceData, index: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The sequences `index` (N,) of a source: (N, sequence_length + 1), and how much of each is real."""
        width = self.sequence_length + 1
        if source.manifest.kind == "text":
            rows = source.stream.rows(packing.first_token(index, self.sequence_length), width)
            return rows, packing.n_targets(index, len(source.stream), self.sequence_length)
        begin, length = source.stream.documents(index)
        rows = source.stream.rows(begin, width)
        return np.where(np.arange(width) < length[:, None], rows, 0).astype(rows.dtype, copy=False), length

    def _bounds_of(self, source: SourceData, index: NDArray[np.int64]) -> tuple[int, int]:
        """The first and the last token of one sequence."""
        if source.manifest.kind == "text":
            first = int(index[0]) * self.sequence_length
            return first, min(first + self.sequence_length, len(source.stream) - 1)
        begin, length = source.stream.documents(index)
        return int(begin[0]), int(begin[0] + length[0]) - 1
