"""Readers share a step wholly, in equally many microbatches; and padding is a segment of its own."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.model.attention import Segments, prefix_mask
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.batches import microbatch_bounds, n_microbatches, of_one_shape, widened, without_weight


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 12))
def test_readers_take_every_sequence_once_in_equally_many_microbatches(n: int, size: int, n_readers: int) -> None:
    bounds = [microbatch_bounds(n, size, n_readers, reader) for reader in range(n_readers)]
    assert [i for of_reader in bounds for begin, end in of_reader for i in range(begin, end)] == list(range(n))
    assert {len(of_reader) for of_reader in bounds} == {n_microbatches(n, size, n_readers)}
    assert all(end - begin <= size for of_reader in bounds for begin, end in of_reader)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    n_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    columns = []
    for row in range(n_rows):
        cuts = sorted({0, *draw(st.lists(st.integers(1, width), max_size=3))} - {width})
        for begin, end in zip(cuts, [*cuts[1:], width], strict=True):
            columns.append((row, begin, draw(st.integers(0, end - begin)), end - begin))
    tokens = torch.arange(1, n_rows * width + 1).view(n_rows, width)
    segments = Segments(*torch.tensor(columns, dtype=torch.int32).unbind(1))
    return Batch(tokens, tokens + 1, torch.ones(n_rows, width), segments)


@given(batches(), st.integers(1, 8))
def test_a_widened_batch_says_the_same_in_more_positions(batch: Batch, multiple: int) -> None:
    check_same(batch, found := widened(batch, multiple))
    assert found.tokens.shape[1] % multiple == 0


@settings(deadline=None)
@given(st.lists(batches(), min_size=1, max_size=4))
def test_batches_of_one_shape_say_what_they_said(given: list[Batch]) -> None:
    found = of_one_shape(given, 4)
    assert {batch.tokens.shape for batch in found} == {(4, max(batch.tokens.shape[1] for batch in given))}
    for one, other in zip(given, found, strict=True):
        check_same(one, other)


def check_same(batch: Batch, found: Batch) -> None:
    n_rows, width = batch.tokens.shape
    for one, other in ((batch.tokens, found.tokens), (batch.targets, found.targets)):
        assert torch.equal(one, other[:n_rows, :width])
    assert found.loss_weights.sum() == batch.loss_weights.sum()
    positions = found.segments.positions(*found.tokens.shape)  # they tile the rows
    assert torch.equal(positions[:n_rows, :width], batch.segments.positions(n_rows, width))
    pieces = {tuple(piece) for piece in prefix_mask(found.segments).pieces.tolist()}
    assert pieces >= {tuple(piece) for piece in prefix_mask(batch.segments).pieces.tolist()}


@given(batches())
def test_a_batch_without_weight_is_worth_nothing(batch: Batch) -> None:
    assert without_weight(batch).loss_weights.sum() == 0
