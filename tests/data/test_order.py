"""The order is a pure function of seed, ledger and position: every sequence once an epoch, in every mixture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.data.mixture import Mixture, integer_weights
from bushcraft.data.order import BatchSizeChange, MixtureChange, Order, Skip, Source
from bushcraft.data.permutation import permute, permute_within_windows

WEIGHTS = st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=12).map(tuple)


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1))
def test_permutation_is_a_bijection_for_any_size(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size), size, seed).tolist()) == list(range(size))


@settings(deadline=None)
@given(
    size=st.integers(1, 5000),
    block=st.integers(1, 200),
    window=st.integers(20, 3000),
    seed=st.integers(0, 2**63 - 1),
)
def test_windowed_permutation_is_a_bijection_for_any_size(size: int, block: int, window: int, seed: int) -> None:
    image = permute_within_windows(np.arange(size), size, block, window, seed)
    assert sorted(image.tolist()) == list(range(size))


@given(size=st.integers(10**9, 2**61), at=st.integers(0, 10**9 - 100), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30)
def test_permutation_of_a_huge_set_stays_inside_and_is_injective(size: int, at: int, seed: int) -> None:
    image = permute(np.arange(at, at + 100), size, seed)
    assert image.min() >= 0
    assert image.max() < size
    assert len(set(image.tolist())) == 100


def test_permutation_looks_random() -> None:
    size = 100_003
    image = permute(np.arange(size), size, 0, "source", 0)
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.02
    assert np.mean(np.abs(np.diff(image)) == 1) < 1e-3
    assert np.mean(image == permute(np.arange(size), size, 0, "source", 1)) < 1e-3  # another epoch, another order


def test_windowed_permutation_needs_the_blocks_of_one_window_only() -> None:
    size, block, window = 100_000, 128, 8192
    image = permute_within_windows(np.arange(size), size, block, window, 0)
    for begin in range(0, size - window, window):
        rows_per_block = np.bincount(image[begin : begin + window] // block)
        assert (rows_per_block > 64).sum() <= window // block  # a few places walk out of the short last block


@given(weights=WEIGHTS, n=st.integers(1, 3000))
def test_mixture_advances_one_source_at_a_time_and_sums_to_the_position(weights: tuple[float, ...], n: int) -> None:
    counts = Mixture(weights).counts(np.arange(n + 1))
    steps = np.diff(counts, axis=1)
    assert (counts.sum(axis=0) == np.arange(n + 1)).all()
    assert ((steps == 0) | (steps == 1)).all()
    assert (steps.sum(axis=0) == 1).all()


@given(weights=WEIGHTS, position=st.integers(0, 2**41))
def test_mixture_stays_near_each_share_at_any_position(weights: tuple[float, ...], position: int) -> None:
    shares = np.array(integer_weights(weights), float)
    ideal = shares / shares.sum() * position
    counts = Mixture(weights).counts(np.array([position]))[:, 0]
    # one floor a level of the tree, and the path to a leaf passes at most all the others
    assert np.abs(counts - ideal).max() <= len(weights)


def test_smallest_source_is_drawn() -> None:
    weights = (800_000.0, 150_000, 30_000, 15_000, 4_000, 900, 90, 10)
    counts = Mixture(weights).counts(np.array([10**6]))[:, 0]
    assert counts.min() >= 9


def _order(*changes: object, sizes: tuple[int, ...] = (100, 37)) -> Order:
    sources = tuple(Source(f"s{i}", size, block=8) for i, size in enumerate(sizes))
    return Order(sources, 7, tuple(1.0 + i for i in range(len(sizes))), 8, changes, shuffle_window=32)  # type: ignore[arg-type]


def test_each_epoch_of_each_source_has_every_sequence_once() -> None:
    samples = _order().samples(np.arange(600))
    for s, size in enumerate((100, 37)):
        for epoch in (0, 1):
            index = samples.index[(samples.source == s) & (samples.epoch == epoch)]
            assert sorted(index.tolist()) == list(range(size))


def test_order_does_not_depend_on_how_positions_are_asked_for() -> None:
    order = _order(MixtureChange(100, (5.0, 1.0)))
    whole = order.samples(np.arange(300))
    for positions in (np.arange(0, 300, 7), np.arange(299, -1, -1), np.array([100])):
        part = order.samples(positions)
        assert (part.index == whole.index[positions]).all()
        assert (part.source == whole.source[positions]).all()


@given(at=st.lists(st.integers(0, 500), max_size=4), weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_changed_mixture_leaves_earlier_positions_alone_and_repeats_nothing(
    at: list[int], weights: list[float]
) -> None:
    changes = [MixtureChange(position, (w, 1.0)) for position, w in zip(at, weights, strict=False)]
    before, after = _order().samples(np.arange(600)), _order(*changes).samples(np.arange(600))
    first = min(at, default=600)
    assert (before.index[:first] == after.index[:first]).all()
    for s, size in enumerate((100, 37)):
        index = after.index[(after.source == s) & (after.epoch == 0)]
        assert len(set(index.tolist())) == len(index) <= size


def test_later_record_at_the_same_position_wins() -> None:
    order = _order(MixtureChange(50, (1.0, 1e-9)), MixtureChange(50, (1e-9, 1.0)))
    assert order.samples(np.arange(60, 90)).source.min() == 1


def test_steps_follow_batch_sizes_and_jump_over_skipped_ranges() -> None:
    order = _order(BatchSizeChange(16, 3), Skip(22, 10))
    position, steps = 0, []
    while (step := order.step(position, 50))[0] != step[1]:
        steps.append(step)
        position = step[1]
    assert steps[:4] == [(0, 8), (8, 16), (16, 19), (19, 22)]
    assert steps[4] == (32, 35)
    assert steps[-1] == (47, 50)


@pytest.mark.parametrize("position", [0, 10**6, 10**9, 10**12])
def test_any_position_of_any_size_is_computed_alike(position: int) -> None:
    order = Order((Source("big", 10**10, 128),), 0, (1.0,), 8)
    samples = order.samples(np.arange(position, position + 8))
    assert samples.index.max() < 10**10
    assert (samples.epoch == position // 10**10).all()
