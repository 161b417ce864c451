"""Tokens that are no text: sentinels for hidden spans, modes, the separator.

A tokenizer's own are used if it has them all; else they stand directly above its vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MODES = {"released": ("[NLU]", "[S2S]", "[NLG]"), "paper": ("[R]", "[S]", "[X]")}
"""UL2's mode tokens for its R, S and X denoisers: those of the released checkpoints, and those of the paper."""


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of tokens that are no text."""

    separator: int
    """Between documents; it begins a decoder's text and ends what it reads and writes."""
    sentinels: NDArray[np.int64]
    """(n,) ids of <extra_id_0>, <extra_id_1> …, in the order in which hidden spans use them."""
    modes: tuple[int, ...] = ()
    """The mode tokens of the R, S and X denoisers; none where the objective has no modes."""
    mode_names: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """One more than the largest id: what the model's vocabulary must have at least."""
        ids: list[int] = [self.separator, *self.modes, *self.sentinels.tolist()]
        return 1 + max(ids)

    def names(self) -> dict[int, str]:
        """What a person reads in place of each sentinel and mode token."""
        sentinels = {token: sentinel_name(i) for i, token in enumerate(self.sentinels.tolist())}
        return sentinels | dict(zip(self.modes, self.mode_names, strict=True))


def sentinel_name(index: int) -> str:
    """T5's name of the sentinel (Raffel et al. 2020)."""
    return f"<extra_id_{index}>"


def special_tokens(
    vocabulary: Mapping[str, int], vocab_size: int, separator: int, n_sentinels: int = 0, mode_names: Sequence[str] = ()
) -> SpecialTokens:
    """The ids for a tokenizer of that vocabulary (name → id), whose size is one more than its largest id."""
    wanted = [*map(sentinel_name, range(n_sentinels)), *mode_names]
    own = all(name in vocabulary for name in wanted)
    ids = [vocabulary[name] for name in wanted] if own else list(range(vocab_size, vocab_size + len(wanted)))
    return SpecialTokens(separator, np.array(ids[:n_sentinels], np.int64), tuple(ids[n_sentinels:]), tuple(mode_names))
