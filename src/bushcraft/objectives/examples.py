"""What an objective asks: read this, predict that. How a model is fed with it is the assembler's affair.

Shapes: N examples, n tokens of all of them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bushcraft.objectives.texts import Ints


@dataclass(frozen=True)
class Examples:
    """Pairs of what is read and what is predicted, one after the other; no side of any is empty."""

    position: Ints
    """(N,) where in the run each is from."""
    place: Ints
    """(N,) where in its row."""
    inputs: NDArray[Any]
    """(n,) ids."""
    input_length: Ints
    """(N,)."""
    targets: NDArray[Any]
    """(n,) ids."""
    target_length: Ints
    """(N,)."""
    both_ways: NDArray[np.bool_]
    """(N,) whether a decoder reads the inputs both ways."""
    weights: NDArray[np.float32] | None = None
    """(n,) of the targets; None is one for each."""

    def __len__(self) -> int:
        return len(self.position)


def merged(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, in the order of their positions and places."""
    if len(parts) == 1:
        return parts[0]
    column = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS}
    order = np.lexsort((column["place"], column["position"]))
    weights = np.concatenate([np.ones(len(p.targets), np.float32) if p.weights is None else p.weights for p in parts])
    inputs = gathered(np.concatenate([p.inputs for p in parts]), column["input_length"], order)
    places = _places(column["target_length"], order)
    targets = np.concatenate([p.targets for p in parts])[places]
    return Examples(**{k: v[order] for k, v in column.items()}, inputs=inputs, targets=targets, weights=weights[places])


_COLUMNS = ("position", "place", "input_length", "target_length", "both_ways")


def gathered(tokens: NDArray[Any], length: Ints, order: Ints) -> NDArray[Any]:
    """Ragged rows, one after the other, in another order."""
    found: NDArray[Any] = tokens[_places(length, order)]
    return found


def _places(length: Ints, order: Ints) -> Ints:
    start = length.cumsum() - length
    return ranges(start[order], length[order])


def ranges(start: Ints, length: Ints) -> Ints:
    """start[0], start[0] + 1, …, then start[1] …: `length` of each."""
    ends: Ints = length.cumsum()
    places: Ints = np.repeat(start - ends + length, length) + np.arange(int(length.sum()))
    return places
