"""A keyed permutation of 0 … n-1 that is computed, not stored: O(1) time and memory for any n.

A balanced Feistel network over the next power of four, walked until it falls below n (Black & Rogaway
2002, "Ciphers with Arbitrary Finite Domains"): a bijection whatever the round function is.
"""

from functools import lru_cache

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

ROUNDS = 6
MAX_SIZE = 1 << 62
_MIX_1 = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment and multiplier (Steele et al. 2014)
_MIX_2 = np.uint64(0xBF58476D1CE4E5B9)


def permute(index: NDArray[np.int64], size: int, *key: int | str) -> NDArray[np.int64]:
    """The images of `index` (any shape, values in [0, size)) under the permutation that `key` names."""
    assert 0 < size <= MAX_SIZE
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    round_keys = _round_keys(key)
    image = index.astype(np.uint64).ravel()
    walking = np.arange(image.size)
    while walking.size:
        value = image[walking]
        left, right = value >> shift, value & mask
        for round_key in round_keys:
            noise = (right + round_key) * _MIX_1  # wraps modulo 2**64, as it should
            noise ^= noise >> np.uint64(29)
            noise *= _MIX_2
            noise ^= noise >> np.uint64(32)
            left, right = right, (left ^ noise) & mask
        value = (left << shift) | right
        image[walking] = value
        walking = walking[value >= np.uint64(size)]
    return image.astype(np.int64).reshape(index.shape)


@lru_cache(maxsize=1024)
def _round_keys(key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    digest = blake3(repr(key).encode()).digest(length=8 * ROUNDS)
    return np.frombuffer(digest, "<u8")


def permute_within_windows(
    index: NDArray[np.int64], size: int, block: int, window: int, *key: int | str
) -> NDArray[np.int64]:
    """A permutation of 0 … size-1 that touches only about `window` neighbouring places at a time.

    Blocks of `block` places (what one read brings) are permuted over the whole; then the places inside each
    run of `window` places are permuted among themselves. So a reader needs a cache of one window, however
    large the set, and reads each block once an epoch. With size ≤ window it is a plain permutation.
    """
    if size <= window:
        return permute(index, size, *key)
    blocks_per_window = max(1, window // block)
    n_blocks = -(-size // block)
    image = index.astype(np.int64).ravel()
    walking = np.arange(image.size)
    while walking.size:  # the last block may be short: walk on out of what lies beyond `size`
        image[walking] = _shuffle_blocks(image[walking], n_blocks, block, blocks_per_window, key)
        walking = walking[image[walking] >= size]
    return image.reshape(index.shape)


def _shuffle_blocks(
    index: NDArray[np.int64], n_blocks: int, block: int, blocks_per_window: int, key: tuple[int | str, ...]
) -> NDArray[np.int64]:
    span = blocks_per_window * block
    shuffled = np.empty_like(index)
    windows = index // span
    for window in np.unique(windows).tolist():
        inside = windows == window
        begin = window * span
        width = min(span, n_blocks * block - begin)
        shuffled[inside] = begin + permute(index[inside] - begin, width, *key, "window", window)
    return permute(shuffled // block, n_blocks, *key, "blocks") * block + shuffled % block
