"""Random numbers that follow from what they are for, not from when they are drawn.

A number is a hash of (seed, purpose, position of the sequence, place in it), so an objective gives the same batch
for a position whatever the world size, the worker and the order of asking. Source of the mix: Steele et al. 2014,
"Fast splittable pseudorandom number generators" (splitmix64).
"""

import numpy as np
from blake3 import blake3
from numpy.typing import ArrayLike, NDArray

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, purpose: str, position: ArrayLike, place: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each pair of `position` and `place` (broadcast against each other)."""
    return (words(seed, purpose, position, place) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def words(seed: int, purpose: str, position: ArrayLike, place: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each pair of `position` and `place` (broadcast against each other)."""
    key = np.frombuffer(blake3(f"{seed}/{purpose}".encode()).digest(length=16), "<u8")
    word = mixed(key[0] + np.asarray(position, np.uint64) * INCREMENT)
    return mixed(word ^ mixed(key[1] + np.asarray(place, np.uint64) * INCREMENT))


def mixed(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words whose every bit depends on every bit of those given."""
    with np.errstate(over="ignore"):  # wraps modulo 2**64, as it should
        word = (word ^ (word >> np.uint64(30))) * _MIX_1
        word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))
