"""The next token of each row out of its logits.

Shapes: B rows, N steps, V vocabulary, C candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 256
"""Tokens that are sorted at first: in a trained model they nearly always hold the nucleus, and sorting a vocabulary of
4096 takes 20 times as long."""


def uniforms(seeds: Sequence[int], n_steps: int) -> Tensor:
    """One number in [0, 1) for each row and step, (B, N) float64: word `step` of the Philox stream of the row's seed.

    So what a row draws depends neither on the rows beside it nor on how many steps follow. Source: Salmon et al.
    2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    words = np.stack([np.random.Philox(key=seed).random_raw(n_steps) for seed in seeds])
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def draw(logits_BV: Tensor, temperature: float, top_p: float, uniform_B: Tensor) -> Tensor:
    """Tokens (B,): the most probable ones at temperature 0, else drawn from softmax(logits / temperature).

    They are drawn from the smallest set of most probable tokens whose probabilities sum to `top_p` (Holtzman et al.
    2020, arXiv:1904.09751) where their running sum, in the order of the vocabulary, passes `uniform_B` of the whole.
    A sum in the order of probability would let two nearly equal tokens change places with the last bit of a logit.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    shifted_BV = logits_BV.double() - logits_BV.amax(-1, keepdim=True)  # a tiny temperature must not give inf - inf
    probability_BV = (shifted_BV / temperature).softmax(-1)
    if top_p < 1:
        probability_BV = _nucleus(probability_BV, top_p)
    sums_BV = probability_BV.cumsum(-1)
    return torch.searchsorted(sums_BV, uniform_B[:, None] * sums_BV[:, -1:], right=True)[:, 0]


def _nucleus(probability_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with zero for those outside of the smallest set; as probable as its last one is inside."""
    sorted_BC = probability_BV.topk(min(CANDIDATES, probability_BV.shape[-1])).values
    if (sorted_BC.sum(-1) < top_p).any():
        sorted_BC = probability_BV.sort(descending=True).values
    before_BC = sorted_BC.cumsum(-1) - sorted_BC
    n_kept_B1 = (before_BC < top_p).sum(-1, keepdim=True)
    return probability_BV.masked_fill(probability_BV < sorted_BC.gather(-1, n_kept_B1 - 1), 0.0)
