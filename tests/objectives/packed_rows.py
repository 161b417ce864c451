"""Rows as the loader gives them, made of documents of known lengths."""

import numpy as np
from hypothesis import strategies as st

from bushcraft.data import packing
from bushcraft.data.loader import Rows
from bushcraft.data.order import Samples

SEPARATOR = 0


def rows_of(documents: list[int], width: int, n_rows: int, last_real: int | None = None) -> Rows:
    """Rows cut from a stream of documents of those lengths, the separator first, repeated until it is long enough.

    Tokens count up in each document. Of the last row only `last_real` targets are real.
    """
    stream = [t for n in documents for t in (SEPARATOR, *range(1, n + 1))]
    stream *= 1 + (n_rows * width + 1) // len(stream)
    tokens = np.array([stream[r * width : r * width + width + 1] for r in range(n_rows)], np.uint16)
    real = np.full(n_rows, width)
    if last_real is not None:
        real[-1] = min(last_real, width)
        tokens[-1, real[-1] + 1 :] = 0
    zeros = np.zeros(n_rows, np.int64)
    return Rows(tokens, real, packing.pieces(tokens[:, :-1], SEPARATOR, real), Samples(zeros, zeros, np.arange(n_rows)))


documents, widths = st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 40)
packed = st.builds(rows_of, documents, widths, st.integers(1, 4))
padded = st.builds(rows_of, documents, widths, st.integers(1, 4), st.integers(1, 40))
"""As `packed`, but the last row may have padding."""
