"""Which sequences of a step a group of ranks reads, and in which shapes.

The global batch stays what it is for any number of readers: contiguous shares, as equal as can be. All readers make
equally many microbatches, so that collectives meet; who has fewer sequences has smaller ones, or one of no weight.

Shapes: B rows, S positions.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bushcraft.model.attention import Segments
from bushcraft.model.packed import Packed
from bushcraft.objectives.batch import Batch


def share(n_sequences: int, n_readers: int, reader: int) -> tuple[int, int]:
    """The sequences [begin, end) of a step that a reader reads."""
    return n_sequences * reader // n_readers, n_sequences * (reader + 1) // n_readers


def microbatch_bounds(n_sequences: int, microbatch_size: int, n_readers: int, reader: int) -> list[tuple[int, int]]:
    """A reader's microbatches as sequences [begin, end) of the step; equally many for each reader, some maybe empty."""
    begin, end = share(n_sequences, n_readers, reader)
    if n_readers == 1:
        return [(first, min(first + microbatch_size, end)) for first in range(begin, end, microbatch_size)]
    n = n_microbatches(n_sequences, microbatch_size, n_readers)
    edges = [begin + (end - begin) * i // n for i in range(n + 1)]
    return list(itertools.pairwise(edges))


def n_microbatches(n_sequences: int, microbatch_size: int, n_readers: int) -> int:
    """How many each reader makes of a step."""
    return math.ceil(math.ceil(n_sequences / n_readers) / microbatch_size)


def without_weight(batch: Batch) -> Batch:
    """The batch of a reader that has no sequence left: computed like any other, and worth nothing."""
    return dataclasses.replace(batch, loss_weights=torch.zeros_like(batch.loss_weights))


def widened(batch: Batch, multiple: int) -> Batch:
    """With as many positions on each side as `multiple` divides; what is added is padding, a segment of its own."""
    encoder = batch.encoder
    if encoder is not None:
        more = -encoder.tokens.shape[1] % multiple
        encoder = Packed(_padded(encoder.tokens, 0, more), _longer_padding(encoder.segments, more))
    return _batch(batch, 0, -batch.tokens.shape[1] % multiple, encoder)


def of_one_shape(batches: Sequence[Batch], n_rows: int) -> list[Batch]:
    """Batches of decoders, all with `n_rows` rows and the width of the widest."""
    width = max(batch.tokens.shape[1] for batch in batches)
    return [_batch(b, n_rows - b.tokens.shape[0], width - b.tokens.shape[1], None) for b in batches]


def _batch(batch: Batch, more_rows: int, more_positions: int, encoder: Packed | None) -> Batch:
    if not (more_rows or more_positions or encoder):
        return batch
    tokens, targets, weights = (
        _padded(x, more_rows, more_positions) for x in (batch.tokens, batch.targets, batch.loss_weights)
    )
    if encoder is not None:
        return Batch(tokens, targets, weights, _longer_padding(batch.segments, more_positions), encoder)
    return Batch(tokens, targets, weights, _with_padding(batch.segments, batch.tokens, more_rows, more_positions))


def _padded(x_BS: Tensor, more_rows: int, more_positions: int) -> Tensor:
    return torch.nn.functional.pad(x_BS, (0, more_positions, 0, more_rows))


def _longer_padding(segments: Segments, more_positions: int) -> Segments:
    """The last segment of a side of an encoder-decoder batch, which is one row, is padding already."""
    length = segments.length.clone()
    length[-1] += more_positions
    return dataclasses.replace(segments, length=length)


def _with_padding(segments: Segments, tokens_BS: Tensor, more_rows: int, more_positions: int) -> Segments:
    """A segment more behind each row that gets longer, and one for each new row."""
    n_rows, width = tokens_BS.shape
    new = [(row, width, 0, more_positions) for row in range(n_rows) if more_positions]
    new += [(n_rows + row, 0, 0, width + more_positions) for row in range(more_rows)]
    if not new:
        return segments
    columns = torch.stack([segments.row, segments.start, segments.prefix_length, segments.length], 1)
    columns = torch.cat([columns, torch.tensor(new, dtype=columns.dtype)])
    columns = columns[torch.from_numpy(np.lexsort((columns[:, 1], columns[:, 0])))]
    return Segments(*columns.unbind(1))
