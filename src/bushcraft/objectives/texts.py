"""The pieces of documents in some rows, one after the other: what every objective is made of.

Shapes: n tokens, P pieces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bushcraft.data.loader import Rows

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Pieces in the order of their positions and places; none is empty."""

    tokens: NDArray[Any]
    """(n,) ids, piece after piece; a piece at which a document begins has its separator in front."""
    length: Ints
    """(P,)."""
    position: Ints
    """(P,) where in the run."""
    place: Ints
    """(P,) where in its row."""
    following: NDArray[Any]
    """(P,) the token that comes after each piece: the separator where its document ends."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def start(self) -> Ints:
        """(P,) where each piece begins in `tokens`."""
        return self.length.cumsum() - self.length

    def chosen(self, which: NDArray[np.bool_]) -> "Texts":
        """Some of the pieces, (P,) bool."""
        tokens = self.tokens[np.repeat(which, self.length)]
        return Texts(tokens, self.length[which], self.position[which], self.place[which], self.following[which])

    def without_separators(self, separator: int) -> "Texts":
        """The pieces without the separators in front of them, those that are then empty left out."""
        begins = self.tokens[self.start] == separator
        kept = np.ones(len(self.tokens), np.bool_)
        kept[self.start[begins]] = False
        length = self.length - begins
        some = length > 0
        return Texts(self.tokens[kept], length[some], self.position[some], self.place[some], self.following[some])


def texts(rows: Rows, begin: int) -> Texts:
    """The pieces in the inputs of rows that stand at positions from `begin` on; padding is left out."""
    row, place = rows.pieces.row, rows.pieces.start
    some = place < rows.real[row]
    row, place = row[some], place[some]
    length = rows.pieces.length[some]
    following = rows.tokens[row, place + length]
    inputs = rows.tokens[:, :-1]
    is_real = np.arange(inputs.shape[1]) < rows.real[:, None]
    flat = inputs.reshape(-1) if is_real.all() else inputs[is_real]
    return Texts(flat, length, begin + row, place, following)
