"""Prefix language modelling: a document's beginning is read both ways, the rest is predicted from it.

Source: Raffel et al. 2020 (arXiv:1910.10683), section 3.2.1; the S-denoiser of UL2 (Tay et al. 2022,
arXiv:2205.05131) is this with a fixed share.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from bushcraft.data.loader import Rows
from bushcraft.model.attention import Segments
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.causal import causal, split_examples
from bushcraft.objectives.examples import Examples
from bushcraft.objectives.randomness import uniform
from bushcraft.objectives.texts import Ints, Texts


def prefix(rows: Rows, begin: int, seed: int, share: float | None = None) -> Batch:
    """The batch of `rows`, which stand at positions from `begin` on: a prefix for each piece of a document.

    A prefix has `share` of its piece, or a length drawn uniformly from 1 to all of it but one, and at least one
    token where there are two. A position whose target the prefix shows has no weight.
    """
    batch = causal(rows)
    pieces = rows.pieces
    if share is None:
        length = _drawn(seed, begin + pieces.row, pieces.start, pieces.length)
    else:
        length = np.round(share * pieces.length).astype(np.int64)
    length = np.minimum(np.maximum(length, 1), pieces.length - 1)
    segments = dataclasses.replace(batch.segments, prefix_length=torch.from_numpy(length.astype(np.int32)))
    shown = torch.from_numpy(_shown(segments, rows.tokens.shape[1] - 1, len(rows.tokens), length))
    return dataclasses.replace(batch, segments=segments, loss_weights=batch.loss_weights.masked_fill(shown, 0.0))


def prefix_examples(texts: Texts, seed: int) -> Examples:
    """The same as examples, with the same prefixes; a text of one token is read whole."""
    length = _drawn(seed, texts.position, texts.place, texts.length)
    return split_examples(texts, np.maximum(np.minimum(length, texts.length - 1), 1), both_ways=True)


def _drawn(seed: int, position: Ints, place: Ints, length: Ints) -> Ints:
    """Uniformly from 1 to all but one."""
    drawn: Ints = 1 + (uniform(seed, "prefix", position, place) * (length - 1)).astype(np.int64)
    return drawn


def _shown(segments: Segments, width: int, n_rows: int, prefix_length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, S) whether a position's target is in the prefix that it sees: all of the prefix but its last one."""
    places = segments.positions(n_rows, width).numpy()
    limit = np.repeat(prefix_length - 1, segments.length.numpy()).reshape(n_rows, width)
    shown: NDArray[np.bool_] = places < limit
    return shown
