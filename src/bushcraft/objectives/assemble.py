"""From examples to the batch of an architecture: what seqio calls a feature converter.

All examples of a batch stand one after the other in one long row for each side, so no example is cut or padded, and
whatever lengths were drawn only the end of the row is padding. Its length is a multiple of a quantum, so that there
are few different ones; if none is given, of one that follows from the tokens of that side, since one side may be a
fraction of the other. The padding is a last segment: nobody outside sees it, and nothing is predicted in it.

Shapes: N examples, T positions of a row.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bushcraft.model.attention import Segments
from bushcraft.model.packed import Packed
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.examples import Examples
from bushcraft.objectives.texts import Ints

QUANTA = 64
"""A row is padded by less than this part of its tokens, or by less than `SMALLEST_QUANTUM` where they are few."""
SMALLEST_QUANTUM = 8


def decoder_batch(examples: Examples, quantum: int | None = None) -> Batch:
    """Inputs and targets of an example are one text: the last input predicts the first target."""
    n = len(examples)
    lengths = np.stack([examples.input_length, examples.target_length], 1).reshape(-1)
    is_target = np.repeat(np.tile([False, True], n), lengths)
    text = np.empty(len(is_target), np.int32)
    text[~is_target], text[is_target] = examples.inputs, examples.targets
    weights = np.zeros(len(text), np.float32)
    weights[is_target] = 1 if examples.weights is None else examples.weights
    whole = examples.input_length + examples.target_length
    ends = whole.cumsum()
    is_input, is_output = np.ones(len(text), np.bool_), np.ones(len(text), np.bool_)
    is_input[ends - 1] = False
    is_output[ends - whole] = False
    prefix = np.where(examples.both_ways, examples.input_length, 0)
    return Batch(
        tokens=_row(text[is_input], quantum),
        targets=_row(text[is_output], quantum),
        loss_weights=_row(weights[is_output], quantum),
        segments=_segments(whole - 1, prefix, quantum),
    )


def encoder_decoder_batch(examples: Examples, separator: int, quantum: int | None = None) -> Batch:
    """The encoder reads the inputs; the decoder begins with the separator and predicts the targets."""
    weights = np.ones(len(examples.targets), np.float32) if examples.weights is None else examples.weights
    tokens = np.empty(len(examples.targets), np.int32)
    tokens[1:] = examples.targets[:-1]
    tokens[examples.target_length.cumsum() - examples.target_length] = separator
    nothing = np.zeros_like(examples.target_length)
    return Batch(
        tokens=_row(tokens, quantum),
        targets=_row(examples.targets, quantum),
        loss_weights=_row(weights, quantum),
        segments=_segments(examples.target_length, nothing, quantum),
        encoder=Packed(_row(examples.inputs, quantum), _segments(examples.input_length, nothing, quantum)),
    )


def _row(values: NDArray[Any], quantum: int | None) -> Tensor:
    """(1, T), int64 or float32, zeros at its end."""
    dtype = torch.float32 if values.dtype == np.float32 else torch.int64
    row = torch.zeros(1, _padded(len(values), quantum), dtype=dtype)
    row[0, : len(values)] = torch.from_numpy(values)
    return row


def _segments(length: Ints, prefix: Ints, quantum: int | None) -> Segments:
    """Of the examples and of the padding behind them, which may be empty."""
    total = int(length.sum())
    length = np.append(length, _padded(total, quantum) - total)
    columns = (np.zeros_like(length), length.cumsum() - length, np.append(prefix, 0), length)
    row, start, prefix_length, length_ = (torch.from_numpy(column.astype(np.int32)) for column in columns)
    return Segments(row=row, start=start, prefix_length=prefix_length, length=length_)


def _padded(n: int, quantum: int | None) -> int:
    """`n` rounded up; by default to a multiple of the largest power of two in its `QUANTA`-th part."""
    if quantum is None:
        quantum = max(SMALLEST_QUANTUM, 1 << max(0, (n // QUANTA).bit_length() - 1))
    return max(1, -(-n // quantum)) * quantum
