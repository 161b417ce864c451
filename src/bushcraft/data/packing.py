"""Concat-and-chunk: the token stream of a split, cut into sequences in closed form.

Sequence i reads the `sequence_length + 1` tokens from i × sequence_length on: its inputs are all but the
last, its targets all but the first. So each token but the stream's first is a target exactly once, and `i`
names its sequence in O(1). A document begins at each separator; attention need not cross it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def n_sequences(n_tokens: int, sequence_length: int) -> int:
    """How many sequences hold every token of a stream; the last may be padded."""
    return max(0, -(-(n_tokens - 1) // sequence_length))


def first_token(index: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
    """Where in the stream the sequences `index` begin."""
    return index * sequence_length


def n_targets(index: NDArray[np.int64], n_tokens: int, sequence_length: int) -> NDArray[np.int64]:
    """How many targets of the sequences `index` are tokens of the stream; what follows is padding."""
    return np.clip(n_tokens - 1 - index * sequence_length, 0, sequence_length)


@dataclass(frozen=True)
class Pieces:
    """The pieces of documents in a batch of rows, sorted by (row, start); they tile each row."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


def pieces(
    inputs: NDArray[Any], separator: int, real: NDArray[np.int64], whole: NDArray[np.bool_] | None = None
) -> Pieces:
    """Cut rows of inputs (N, S) where documents begin; what follows the `real` (N,) positions is one piece.

    Rows that are `whole` (N,) are one document, whatever is in it.
    """
    n_rows, width = inputs.shape
    begins = inputs == separator
    if whole is not None:
        begins[whole] = False
    begins[:, 0] = True
    for row in np.flatnonzero(real < width).tolist():
        begins[row, real[row] :] = False
        begins[row, min(int(real[row]), width - 1)] = True
    flat = np.flatnonzero(begins)
    return Pieces(flat // width, flat % width, np.diff(flat, append=n_rows * width))
