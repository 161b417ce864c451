"""Whatever the objective and the architecture, a batch asks for each target once and shows nothing that it asks for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.data.loader import Rows
from bushcraft.model.attention import Segments
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.causal import causal
from bushcraft.objectives.examples import Examples
from bushcraft.objectives.objective import (
    UL2,
    Architecture,
    Causal,
    Objective,
    ObjectiveMixture,
    Prefix,
    SpanCorruption,
    batch_of,
)
from bushcraft.objectives.prefix import prefix
from bushcraft.objectives.special import MODES, special_tokens
from bushcraft.objectives.texts import texts
from tests.objectives.packed_rows import SEPARATOR, packed, padded, rows_of

SPECIAL = special_tokens({}, 1000, SEPARATOR, 50, MODES["paper"])
OBJECTIVES: dict[str, Objective] = {
    "prefix": Prefix(1),
    "span_corruption": SpanCorruption(SPECIAL, 1),
    "ul2": UL2(SPECIAL, 1),
    "mixture": ObjectiveMixture({"a": Prefix(1), "b": UL2(SPECIAL, 1)}, ((0, {"a": 1.0, "b": 2.0}),)),
}


def sides(examples: Examples) -> list[tuple[list[int], list[int]]]:
    inputs = np.split(examples.inputs, examples.input_length.cumsum()[:-1])
    targets = np.split(examples.targets, examples.target_length.cumsum()[:-1])
    return [(a.tolist(), b.tolist()) for a, b in zip(inputs, targets, strict=True)] if len(examples) else []


def tiles(segments: Segments, width: int) -> bool:
    ends = segments.start + segments.length
    return bool((segments.start[1:] == ends[:-1]).all()) and int(ends[-1]) == width


def predicted(batch: Batch) -> list[list[int]]:
    """The targets with a weight, segment by segment, without the padding."""
    return [
        batch.targets[0, start : start + length][batch.loss_weights[0, start : start + length] > 0].tolist()
        for start, length in zip(batch.segments.start.tolist(), batch.segments.length.tolist(), strict=True)
    ][:-1]


@settings(max_examples=60, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**30), name=st.sampled_from(sorted(OBJECTIVES)))
def test_an_encoder_decoder_reads_the_inputs_and_predicts_the_targets(rows: Rows, begin: int, name: str) -> None:
    objective = OBJECTIVES[name]
    wanted = sides(objective.examples(texts(rows, begin)))
    batch = batch_of(objective, rows, begin, "encoder_decoder", SEPARATOR)
    assert batch.encoder is not None
    inner, outer = batch.encoder.segments, batch.segments
    assert tiles(inner, batch.encoder.tokens.shape[1])
    assert tiles(outer, batch.tokens.shape[1])
    assert len(inner.row) == len(outer.row) == len(wanted) + 1, "an n-th segment belongs to the n-th"
    assert predicted(batch) == [targets for _, targets in wanted]
    for n, (inputs, targets) in enumerate(wanted):
        at, length = int(inner.start[n]), int(inner.length[n])
        assert batch.encoder.tokens[0, at : at + length].tolist() == inputs
        at, length = int(outer.start[n]), int(outer.length[n])
        assert batch.tokens[0, at : at + length].tolist() == [SEPARATOR, *targets[:-1]]


@settings(max_examples=60, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**30), name=st.sampled_from(["span_corruption", "ul2", "mixture"]))
def test_a_decoder_reads_inputs_then_targets_and_predicts_the_targets(rows: Rows, begin: int, name: str) -> None:
    objective = OBJECTIVES[name]
    wanted = sides(objective.examples(texts(rows, begin)))
    batch = batch_of(objective, rows, begin, "decoder", SEPARATOR)
    assert tiles(batch.segments, batch.tokens.shape[1])
    assert predicted(batch) == [targets for _, targets in wanted]
    for n, (inputs, targets) in enumerate(wanted):
        at, length = int(batch.segments.start[n]), int(batch.segments.length[n])
        assert batch.tokens[0, at : at + length].tolist() == [*inputs, *targets[:-1]]
        assert int(batch.segments.prefix_length[n]) == len(inputs), "no target is inside of what is read both ways"
        assert batch.targets[0, at : at + length].tolist() == [*inputs[1:], *targets]


@settings(max_examples=80, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**30), name=st.sampled_from(sorted(OBJECTIVES)), at=st.floats(0, 1))
def test_however_rows_are_cut_into_microbatches_they_ask_the_same(rows: Rows, begin: int, name: str, at: float) -> None:
    objective, n_rows = OBJECTIVES[name], len(rows.tokens)
    cut = round(at * n_rows)
    whole = objective.examples(texts(rows, begin))
    parts = [objective.examples(texts(rows.part(a, b), begin + a)) for a, b in ((0, cut), (cut, n_rows)) if a < b]
    assert sides(whole) == [pair for part in parts for pair in sides(part)]
    for column in ("position", "place", "both_ways"):
        assert np.array_equal(getattr(whole, column), np.concatenate([getattr(part, column) for part in parts]))


@settings(max_examples=40, deadline=None)
@given(rows=packed | padded, begin=st.integers(0, 2**30))
def test_causal_and_prefix_examples_ask_what_their_rows_ask(rows: Rows, begin: int) -> None:
    for objective, whole in ((Causal(), causal(rows)), (Prefix(1), prefix(rows, begin, 1))):
        mixed = ObjectiveMixture({"a": objective, "b": objective}, ((0, {"a": 1.0, "b": 2.0}),))
        batch = batch_of(mixed, rows, begin, "decoder", SEPARATOR)
        asked = [t for segment in predicted(batch) for t in segment]
        plain = whole.targets[whole.loss_weights > 0].tolist()
        if isinstance(objective, Causal):
            assert asked == plain
        else:  # a text of one token, whose next token a row cannot ask of an empty prefix, is asked here
            assert sorted(asked) == sorted(plain)


def test_positions_belong_to_the_parts_by_their_weights_and_changes_begin_where_they_say() -> None:
    mixture = ObjectiveMixture(
        {"a": Causal(), "b": Prefix(0)}, ((0, {"a": 3.0, "b": 1.0}), (1000, {"a": 1.0, "b": 1.0}))
    )
    part = mixture.part(np.arange(2000))
    assert abs(part[:1000].mean() - 0.25) < 0.01
    assert abs(part[1000:].mean() - 0.5) < 0.01
    unchanged = ObjectiveMixture(mixture.parts, mixture.weights[:1])
    assert (part[:1000] == unchanged.part(np.arange(1000))).all()


@pytest.mark.parametrize("name", ["span_corruption", "ul2", "mixture"])
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_of_no_side_of_any_batch_are_three_hundredths_padding(architecture: Architecture, name: str) -> None:
    """Span corruption's targets are a fifth of the text: the share must hold for them alone."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = rows_of(rng.integers(20, 900, 8).tolist(), 512, int(rng.integers(4, 12)))
        batch = batch_of(OBJECTIVES[name], rows, int(rng.integers(2**30)), architecture, SEPARATOR)
        for side in (batch, batch.encoder):
            if side is not None:
                assert int(side.segments.length[-1]) < 0.03 * side.tokens.numel()


def test_widths_come_from_a_small_set() -> None:
    decoder, encoder = set(), set()
    for position in range(0, 100 * 64, 64):
        batch = batch_of(UL2(SPECIAL, 0), rows_of([700], 512, 64), position, "encoder_decoder", SEPARATOR)
        assert batch.encoder is not None
        decoder.add(batch.tokens.shape[1])
        encoder.add(batch.encoder.tokens.shape[1])
    assert len(decoder) < 30
    assert len(encoder) < 20
    assert all(width % 128 == 0 for width in decoder)
    assert all(width % 256 == 0 for width in encoder)


def test_tokens_are_of_the_type_that_a_model_takes() -> None:
    assert batch_of(UL2(SPECIAL, 0), rows_of([7], 9, 1), 0, "decoder", SEPARATOR).tokens.dtype is torch.int64
