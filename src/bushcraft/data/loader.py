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
from bushcraft.store.depot import Depot
from bushcraft.store.pack import FRAME_BYTES


@dataclass(frozen=True)
class Rows:
    """Packed sequences in the order of their positions."""

    tokens: NDArray[Any]
    """(N, sequence_length + 1) token ids: inputs are [:, :-1], targets [:, 1:]."""
    real: NDArray[np.int64]
    """(N,) how many of the targets are tokens of the corpus; the rest is padding."""
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
        """16 bytes that name these sequences and every token in them (a part of the run's receipt)."""
        digest = xxhash.xxh3_128()
        for column in (self.samples.source, self.samples.epoch, self.samples.index):
            digest.update(column.tobytes())
        digest.update(self.tokens.tobytes())
        return digest.digest()


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


def order_source(source: SourceData, sequence_length: int) -> Source:
    """What the order plane has to know of a source: its size, and how many sequences one frame brings."""
    per_frame = FRAME_BYTES // source.manifest.itemsize
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
            rows = source.stream.rows(packing.first_token(index, self.sequence_length), self.sequence_length + 1)
            if mine.size == end - begin:
                tokens = rows
            else:
                tokens[mine] = rows
            real[mine] = packing.n_targets(index, len(source.stream), self.sequence_length)
        separator = self.sources[0].manifest.separator_id
        return Rows(tokens, real, packing.pieces(tokens[:, :-1], separator, real), samples)

    def explain(self, position: int) -> list[dict[str, Any]]:
        """The documents behind the sequence at `position`: name, source, and which of its tokens are in it."""
        sample = self.order.samples(np.array([position]))
        source = self.sources[int(sample.source[0])]
        first = int(sample.index[0]) * self.sequence_length
        last = min(first + self.sequence_length, len(source.stream) - 1)
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
