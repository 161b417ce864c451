"""Causal language modelling: each position predicts the token after it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bushcraft.data.loader import Rows
from bushcraft.data.packing import Pieces
from bushcraft.model.attention import Segments
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.examples import Examples, ranges
from bushcraft.objectives.texts import Ints, Texts


def causal(rows: Rows, document_mask: bool = True) -> Batch:
    """The batch of `rows`; without `document_mask` attention runs over a whole row."""
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    width = tokens.shape[1] - 1
    weights = np.arange(width) < rows.real[:, None]
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        loss_weights=torch.from_numpy(weights.astype(np.float32)),
        segments=segments_of(rows.pieces) if document_mask else _whole_rows(len(tokens), width),
    )


def causal_examples(texts: Texts) -> Examples:
    """The same as examples: a text's first token is read, the others and the one after it are predicted."""
    return split_examples(texts, np.ones_like(texts.length), both_ways=False)


def split_examples(texts: Texts, n_read: Ints, both_ways: bool) -> Examples:
    """Read so many tokens of each text, at least one; predict the others and the one after it."""
    is_input = np.zeros(len(texts.tokens), np.bool_)
    is_input[ranges(texts.start, n_read)] = True
    target_length = texts.length - n_read + 1
    targets = np.empty(int(target_length.sum()), texts.tokens.dtype)
    is_last = np.zeros(len(targets), np.bool_)
    is_last[target_length.cumsum() - 1] = True
    targets[~is_last], targets[is_last] = texts.tokens[~is_input], texts.following
    return Examples(
        position=texts.position,
        place=texts.place,
        inputs=texts.tokens[is_input],
        input_length=n_read,
        targets=targets,
        target_length=target_length,
        both_ways=np.full(len(texts), both_ways),
    )


def segments_of(pieces: Pieces) -> Segments:
    """Pieces of documents as segments without a prefix."""
    row, start, length = map(_int32, (pieces.row, pieces.start, pieces.length))
    return Segments(row=row, start=start, prefix_length=torch.zeros_like(row), length=length)


def _whole_rows(n_rows: int, width: int) -> Segments:
    row = torch.arange(n_rows, dtype=torch.int32)
    zeros = torch.zeros_like(row)
    return Segments(row=row, start=zeros, prefix_length=zeros, length=torch.full_like(row, width))


def _int32(array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array.astype(np.int32))
