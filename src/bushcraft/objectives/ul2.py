"""UL2: a mixture of denoisers, each told to the model by a mode token.

Source: Tay et al. 2022 (arXiv:2205.05131), table 1; UL2R, with which a trained model goes on: Tay et al. 2022
(arXiv:2210.11399), section 3.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bushcraft.objectives.randomness import words
from bushcraft.objectives.span_corruption import Denoisers
from bushcraft.objectives.special import SpecialTokens
from bushcraft.objectives.texts import Ints, Texts

R, S, X = range(3)
"""Places of the modes in `SpecialTokens.modes`: regular, sequential, extreme."""


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a text."""

    mode: int
    mean_span: float
    """Tokens of a hidden span; infinite for one span at the end of the text."""
    corruption: float
    share: float
    """Of the texts."""


SEQUENTIAL = float("inf")
UL2 = (
    Denoiser(R, 3, 0.15, 1 / 7),
    Denoiser(R, 8, 0.15, 1 / 7),
    Denoiser(S, SEQUENTIAL, 0.25, 1 / 7),
    Denoiser(X, 3, 0.5, 1 / 7),
    Denoiser(X, 8, 0.5, 1 / 7),
    Denoiser(X, 64, 0.15, 1 / 7),
    Denoiser(X, 64, 0.5, 1 / 7),
)
UL2R = (
    Denoiser(R, 3, 0.15, 0.25),
    Denoiser(S, SEQUENTIAL, 0.25, 0.5),
    Denoiser(X, 32, 0.15, 0.125),
    Denoiser(X, 3, 0.5, 0.125),
)
_STEP_1, _STEP_2 = np.uint64(0xC13FA9A902A6328F), np.uint64(0x91E10DA5C79E7B1C)
"""1/p and 1/p² of the plastic number p = 1.3247…, as fractions of 2**64."""


def denoisers(texts: Texts, table: tuple[Denoiser, ...], special: SpecialTokens, seed: int) -> Denoisers:
    """The denoiser of each text."""
    which = chosen(texts, table, seed)
    columns = np.array([(d.mean_span, d.corruption) for d in table])
    mode = np.array([special.modes[d.mode] for d in table], np.int64)
    return Denoisers(columns[which, 0], columns[which, 1], mode[which])


def chosen(texts: Texts, table: tuple[Denoiser, ...], seed: int) -> Ints:
    """The row of `table` for each text, (P,).

    Not by independent draws: by the sequence of Roberts 2018 ("The unreasonable effectiveness of quasirandom
    sequences", R2) over (position, number of the text in its row). So any stretch of positions has nearly the
    exact share of each denoiser, and both sides of its batches are of nearly the same length.
    """
    offset = words(seed, "denoiser", np.zeros(1), np.zeros(1))[0]
    number = np.arange(len(texts)) - np.searchsorted(texts.position, texts.position)
    with np.errstate(over="ignore"):
        point = offset + texts.position.astype(np.uint64) * _STEP_1 + number.astype(np.uint64) * _STEP_2
    ends: NDArray[np.float64] = np.cumsum([d.share for d in table])
    found: Ints = np.searchsorted(ends[:-1], (point >> np.uint64(11)) * 2.0**-53, side="right")
    return found
