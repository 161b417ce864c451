"""Span corruption is T5's: its lengths, its rates, its sentinels; and nothing of a text is lost or shown twice."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.data.loader import Rows
from bushcraft.objectives.examples import Examples
from bushcraft.objectives.objective import UL2, SpanCorruption
from bushcraft.objectives.span_corruption import noise
from bushcraft.objectives.special import MODES, SpecialTokens, special_tokens
from bushcraft.objectives.texts import Texts, texts
from bushcraft.objectives.ul2 import UL2 as TABLE
from bushcraft.objectives.ul2 import UL2R, chosen
from tests.objectives.packed_rows import SEPARATOR, packed, padded, rows_of

SPECIAL = special_tokens({}, 1000, SEPARATOR, 100, MODES["released"])


def one_text(length: int, position: int = 0) -> Texts:
    column = np.array([length])
    return Texts(np.arange(1, length + 1), column, np.array([position]), np.array([0]), np.array([SEPARATOR]))


def sides(examples: Examples) -> list[tuple[list[int], list[int]]]:
    inputs = np.split(examples.inputs, examples.input_length.cumsum()[:-1])
    targets = np.split(examples.targets, examples.target_length.cumsum()[:-1])
    return [(a.tolist(), b.tolist()) for a, b in zip(inputs, targets, strict=True)]


def filled(inputs: list[int], targets: list[int], special: SpecialTokens) -> list[int]:
    """The text, put together again from both sides."""
    sentinels = set(special.sentinels.tolist())
    assert inputs[-1] == targets[-1] == special.separator
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in sentinels:
            assert token not in spans
            spans[token] = []
        else:
            spans[[*spans][-1]].append(token)
    assert [*spans] == special.sentinels[: len(spans)].tolist(), "sentinels ascend from the first"
    assert [t for t in inputs if t in sentinels] == [*spans], "each sentinel stands once on each side"
    assert all(spans.values()), "no hidden span is empty"
    body = inputs[1:-1] if inputs[0] in special.modes else inputs[:-1]
    return [t for token in body for t in (spans[token] if token in sentinels else [token])]


GOLDEN = [
    (3, 0.15, 568, 512, 114, 141, 29),
    (8, 0.15, 588, 512, 100, 146, 26),
    (3, 0.5, 766, 512, 512, 190, 128),
    (8, 0.5, 908, 512, 512, 226, 128),
    (64, 0.15, 600, 512, 92, 149, 23),
    (64, 0.5, 1006, 512, 512, 250, 128),
    (32, 0.15, 598, 512, 94, 148, 24),
]
"""Mean span, rate; raw, in, out of T5's random_spans_helper for inputs of 512; raw, out for inputs of 128."""


@pytest.mark.parametrize(("mean_span", "rate", "raw", "n_in", "n_out", "raw_128", "out_128"), GOLDEN)
def test_lengths_are_those_of_t5(
    mean_span: float, rate: float, raw: int, n_in: int, n_out: int, raw_128: int, out_128: int
) -> None:
    special = special_tokens({}, 2000, SEPARATOR, 300)
    objective = SpanCorruption(special, 0, mean_span, rate)
    for length, wanted in ((raw, (n_in, n_out)), (raw_128, (128, out_128))):
        # The helper counts no span where T5's mask, and ours, makes one all the same: 22 tokens in spans of 64.
        spare = int(round(round(length * rate) / mean_span) == 0)
        ((inputs, targets),) = sides(objective.examples(one_text(length)))
        assert (len(inputs) - spare, len(targets) - spare) == wanted


@settings(max_examples=150, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**40), mean=st.floats(1, 70), rate=st.floats(0.01, 0.99))
def test_both_sides_put_together_are_the_text_and_nothing_crosses_documents(
    rows: Rows, begin: int, mean: float, rate: float
) -> None:
    given_texts = texts(rows, begin).without_separators(SEPARATOR)
    examples = SpanCorruption(SPECIAL, 3, mean, rate).examples(texts(rows, begin))
    assert len(examples) == len(given_texts)
    each = np.split(given_texts.tokens, given_texts.start[1:]) if len(given_texts) else []
    for text, (inputs, targets) in zip(each, sides(examples) if len(examples) else [], strict=True):
        assert filled(inputs, targets, SPECIAL) == text.tolist()
        assert (np.diff(text.astype(int)) == 1).all(), "a text is a stretch of one document"


@settings(max_examples=60, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**40), seed=st.integers(0, 2**63 - 1))
def test_ul2_loses_nothing_either(rows: Rows, begin: int, seed: int) -> None:
    given_texts = texts(rows, begin).without_separators(SEPARATOR)
    examples = UL2(SPECIAL, seed).examples(texts(rows, begin))
    each = np.split(given_texts.tokens, given_texts.start[1:]) if len(given_texts) else []
    for text, (inputs, targets) in zip(each, sides(examples) if len(examples) else [], strict=True):
        assert inputs[0] in SPECIAL.modes
        assert filled(inputs, targets, SPECIAL) == text.tolist()


@settings(max_examples=60, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**40))
def test_a_position_gives_the_same_examples_in_whatever_batch_it_comes(rows: Rows, begin: int) -> None:
    objective = UL2(SPECIAL, 5)
    whole = objective.examples(texts(rows, begin))
    parts = [objective.examples(texts(rows.part(r, r + 1), begin + r)) for r in range(len(rows.tokens))]
    for name in ("inputs", "input_length", "targets", "target_length", "position", "place"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts])), name


def test_there_are_never_more_spans_than_sentinels() -> None:
    n_noise, n_spans = noise(np.array([8192]), np.array([3.0]), np.array([0.5]), max_spans=100)
    assert (n_noise.tolist(), n_spans.tolist()) == ([4096], [100])


def test_every_way_to_cut_is_equally_likely() -> None:
    """5 hidden tokens in 3 spans: 6 ways; chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand."""
    n = 3000
    column = np.full(n, 10)
    many = Texts(np.tile(np.arange(1, 11), n), column, np.arange(n), np.zeros(n, int), np.zeros(n, int))
    objective = SpanCorruption(SPECIAL, 0, 5 / 3, 0.5)
    counts: dict[tuple[int, ...], int] = {}
    for _, targets in sides(objective.examples(many)):
        at = [i for i, token in enumerate(targets) if token >= 1000 or token == SEPARATOR]
        lengths = tuple(b - a - 1 for a, b in pairwise(at))
        counts[lengths] = counts.get(lengths, 0) + 1
    assert len(counts) == math.comb(4, 2)
    assert sum((c - n / 6) ** 2 / (n / 6) for c in counts.values()) < 20.5


@pytest.mark.parametrize("table", [TABLE, UL2R])
@pytest.mark.parametrize("begin", [0, 12_345, 2**40])
def test_any_stretch_of_positions_has_nearly_the_exact_share_of_each_denoiser(table: tuple, begin: int) -> None:
    n = 280
    column = np.full(n, 4)
    many = Texts(np.zeros(4 * n, int), column, begin + np.arange(n), np.zeros(n, int), np.zeros(n, int))
    which = chosen(many, table, 0)
    for first in range(0, n - 70, 7):
        counts = np.bincount(which[first : first + 70], minlength=len(table))
        assert np.abs(counts - 70 * np.array([d.share for d in table])).max() <= 4


def test_ul2_hides_what_its_table_says() -> None:
    """Table 1 of Tay et al. 2022: rates, mean spans and modes, measured on 7000 texts of 500 tokens."""
    n, length = 7000, 500
    column = np.full(n, length)
    many = Texts(np.tile(np.arange(1, length + 1), n), column, np.arange(n), np.zeros(n, int), np.zeros(n, int))
    which = chosen(many, TABLE, 1)
    examples = []
    for part in range(0, n, 1000):
        some = np.zeros(n, bool)
        some[part : part + 1000] = True
        examples += sides(UL2(SPECIAL, 1).examples(many.chosen(some)))
    found: dict[int, list[tuple[int, float, float]]] = {}
    for kind, (inputs, targets) in zip(which.tolist(), examples, strict=True):
        n_spans = sum(token >= 1000 for token in targets)
        hidden = len(targets) - 1 - n_spans
        found.setdefault(kind, []).append((SPECIAL.modes.index(inputs[0]), hidden / length, hidden / n_spans))
    for kind, denoiser in enumerate(TABLE):
        modes, rates, spans = zip(*found[kind], strict=True)
        assert set(modes) == {denoiser.mode}
        assert abs(np.mean(rates) - denoiser.corruption) < 0.002
        mean_span = 0.25 * length if math.isinf(denoiser.mean_span) else denoiser.mean_span
        assert abs(np.mean(spans) / mean_span - 1) < 0.18  # spans are a whole number: 75 tokens in 64s are one of 75
        assert abs(len(rates) / n - denoiser.share) < 0.001


def test_the_sequential_denoiser_hides_the_end() -> None:
    for position in range(40):
        ((inputs, targets),) = sides(UL2(SPECIAL, 0).examples(one_text(100, position)))
        if inputs[0] == SPECIAL.modes[1]:
            assert inputs == [SPECIAL.modes[1], *range(1, 76), SPECIAL.sentinels[0], SEPARATOR]
            assert targets == [SPECIAL.sentinels[0], *range(76, 101), SEPARATOR]
            return
    raise AssertionError("there was none in forty texts")


def test_the_tokenizers_own_sentinels_are_used_if_it_has_them_all() -> None:
    own = {"<extra_id_0>": 31, "<extra_id_1>": 30, "[R]": 1, "[S]": 2, "[X]": 3}
    special = special_tokens(own, 32, 5, 2, MODES["paper"])
    assert (special.sentinels.tolist(), special.modes, special.end) == ([31, 30], (1, 2, 3), 32)
    above = special_tokens(own, 32, 5, 3, MODES["paper"])
    assert (above.sentinels.tolist(), above.modes, above.end) == ([32, 33, 34], (35, 36, 37), 38)
    assert above.names()[33] == "<extra_id_1>"
    assert above.names()[36] == "[S]"


def test_padding_is_not_read() -> None:
    rows = rows_of([30], 20, 2, last_real=7)
    found = texts(rows, 0)
    assert found.position.tolist() == [0, 1]
    assert found.length.tolist() == [20, 7]
    assert found.following.tolist() == [20, 27]
