"""Span corruption: hidden spans of a text are predicted from the rest of it.

Source: Raffel et al. 2020 (arXiv:1910.10683), section 3.3.4, and `random_spans_noise_mask` of their code. For a text
of L tokens, a share r and a mean span μ: round(L r) tokens are hidden in round(L r / μ) spans; hidden and visible
tokens are each cut into so many parts, uniformly over all ways to do so, and interleaved, a visible part first.

Shapes: n tokens, P texts, K spans of all texts together, G groups.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bushcraft.objectives.examples import Examples, ranges
from bushcraft.objectives.randomness import INCREMENT, mixed, words
from bushcraft.objectives.special import SpecialTokens
from bushcraft.objectives.texts import Ints, Texts


@dataclass(frozen=True)
class Denoisers:
    """For each of P texts, how it is corrupted."""

    mean_span: NDArray[np.float64]
    corruption: NDArray[np.float64]
    mode: Ints
    """The token in front of what is read; -1 for none."""


def corrupted(
    texts: Texts, denoisers: Denoisers, special: SpecialTokens, seed: int, both_ways: bool = True
) -> Examples:
    """One example for each text, which is without separators.

    Read: the mode token if there is one, the text with a sentinel in place of each hidden span, the separator.
    Predicted: each span behind its sentinel, then the separator.
    """
    n_noise, n_spans = noise(texts.length, denoisers.mean_span, denoisers.corruption, len(special.sentinels))
    lengths = span_lengths(texts, n_noise, n_spans, seed)
    hidden = np.repeat(np.tile([False, True], len(lengths)), lengths.reshape(-1))
    text_of_span = np.repeat(np.arange(len(texts)), n_spans)
    number = np.arange(len(lengths)) - np.repeat(n_spans.cumsum() - n_spans, n_spans)
    has_mode = denoisers.mode >= 0
    input_length = texts.length - n_noise + n_spans + 1 + has_mode
    target_length = n_noise + n_spans + 1
    begins = input_length.cumsum() - input_length
    sentinels = special.sentinels[number]
    # A sentinel stands behind its visible part on one side, and in front of its hidden part on the other.
    behind = _running(lengths[:, 0], n_spans) + number + (begins + has_mode)[text_of_span]
    ahead = _running(lengths[:, 1], n_spans) - lengths[:, 1] + number
    ahead += (target_length.cumsum() - target_length)[text_of_span]
    return Examples(
        position=texts.position,
        place=texts.place,
        inputs=_woven(
            texts.tokens[~hidden],
            (behind, sentinels),
            (begins[has_mode], denoisers.mode[has_mode]),
            (input_length.cumsum() - 1, np.full(len(texts), special.separator)),
        ),
        input_length=input_length,
        targets=_woven(
            texts.tokens[hidden],
            (ahead, sentinels),
            (target_length.cumsum() - 1, np.full(len(texts), special.separator)),
        ),
        target_length=target_length,
        both_ways=np.full(len(texts), both_ways),
    )


def noise(
    length: Ints, mean_span: NDArray[np.float64], corruption: NDArray[np.float64], max_spans: int
) -> tuple[Ints, Ints]:
    """How many tokens of texts of that length are hidden, and in how many spans: T5's rounding.

    A text of one token is hidden whole; spans are longer where there are not enough sentinels.
    """
    n_noise = np.round(length * corruption).astype(np.int64)
    n_noise = np.maximum(np.minimum(n_noise, length - 1), 1)
    n_spans = np.round(n_noise / mean_span).astype(np.int64)
    n_spans = np.minimum(n_spans, np.minimum(n_noise, length - n_noise))
    return n_noise, np.clip(n_spans, 1, max_spans)


def span_lengths(texts: Texts, n_noise: Ints, n_spans: Ints, seed: int) -> Ints:
    """(K, 2) tokens of each visible part and of the hidden span after it, text after text."""
    n_visible = texts.length - n_noise
    groups = Groups(
        length=np.stack([n_visible, n_noise], 1).reshape(-1),
        key=_group_keys(words(seed, "spans", texts.position, texts.place)),
    )
    starts = np.flatnonzero(beginnings(groups, np.repeat(n_spans, 2)))
    found = np.diff(starts, append=len(texts.tokens))
    lengths = np.zeros((int(n_spans.sum()), 2), np.int64)  # a text of one token has no visible part
    n_parts = np.where(groups.length > 0, np.repeat(n_spans, 2), 0)
    is_hidden = np.repeat(np.tile([False, True], len(texts)), n_parts)
    lengths[np.repeat(n_visible > 0, n_spans), 0] = found[~is_hidden]
    lengths[:, 1] = found[is_hidden]
    return lengths


def _group_keys(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Two keys for each."""
    return mixed(np.stack([key, key + INCREMENT], 1).reshape(-1))


@dataclass(frozen=True)
class Groups:
    """Items that are to be cut into parts, group after group: the visible tokens of a text, then its hidden ones."""

    length: Ints
    """(G,) items of each."""
    key: NDArray[np.uint64]
    """(G,) the randomness of each."""


def beginnings(groups: Groups, n_parts: Ints) -> NDArray[np.bool_]:
    """At which items a part begins, so that each group has `n_parts` (G,) of them, every way as likely as any other.

    A part begins at the first item, and at n_parts - 1 of the others. These are drawn again and again until enough of
    them are different; where more than half of the items are wanted, those that are not wanted are drawn.
    """
    others, begin = groups.length - 1, groups.length.cumsum() - groups.length
    wanted = np.minimum(n_parts - 1, others)
    inverted = 2 * wanted > others
    missing = np.maximum(np.where(inverted, others - wanted, wanted), 0)
    n_items = int(groups.length.sum())
    taken, last = np.zeros(n_items, np.bool_), np.empty(n_items, np.int64)
    n_drawn = np.zeros_like(missing)
    while missing.any():
        some = np.flatnonzero(missing)
        group = np.repeat(some, missing[some])
        number = ranges(n_drawn[some], missing[some]).astype(np.uint64)
        random = mixed(groups.key[group] + number * INCREMENT) >> np.uint64(32)
        item = begin[group] + 1 + ((random * others[group].astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        n_drawn += missing
        draw = np.arange(len(item))
        last[item] = draw  # of equal draws one wins
        new = (last[item] == draw) & ~taken[item]
        taken[item[new]] = True
        missing -= np.bincount(group[new], minlength=len(missing))
    if inverted.any():
        taken ^= np.repeat(inverted, groups.length)
    taken[begin[groups.length > 0]] = True
    return taken


def _running(length: Ints, n_spans: Ints) -> Ints:
    """Sums of `length` up to each span and with it, beginning anew in each text."""
    total = length.cumsum()
    before = np.concatenate([[0], total])[n_spans.cumsum() - n_spans]
    running: Ints = total - np.repeat(before, n_spans)
    return running


def _woven(text: NDArray[Any], *others: tuple[Ints, Ints]) -> NDArray[np.int32]:
    """`text` in its order, with other tokens at their places between."""
    found = np.empty(len(text) + sum(len(places) for places, _ in others), np.int32)
    free = np.ones(len(found), np.bool_)
    for places, tokens in others:
        found[places] = tokens
        free[places] = False
    found[free] = text
    return found
