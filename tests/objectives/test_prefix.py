"""A prefix-LM batch predicts what follows the prefix, from what the prefix and the past show, and nothing else."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.data.loader import Rows
from bushcraft.objectives.causal import causal
from bushcraft.objectives.prefix import prefix
from bushcraft.objectives.randomness import uniform
from tests.objectives.packed_rows import packed, rows_of


@settings(max_examples=100, deadline=None)
@given(rows=packed, begin=st.integers(0, 2**40), share=st.none() | st.floats(0, 1))
def test_exactly_the_targets_that_the_prefix_does_not_show_are_predicted(
    rows: Rows, begin: int, share: float | None
) -> None:
    batch, plain = prefix(rows, begin, seed=3, share=share), causal(rows)
    assert torch.equal(batch.tokens, plain.tokens)
    assert torch.equal(batch.targets, plain.targets)
    for row, start, n_prefix, length in torch.stack(
        [batch.segments.row, batch.segments.start, batch.segments.prefix_length, batch.segments.length], 1
    ).tolist():
        assert min(1, length - 1) <= n_prefix <= max(0, length - 1)
        predicted = batch.loss_weights[row, start : start + length].nonzero()[:, 0].tolist()
        assert predicted == list(range(max(0, n_prefix - 1), length))


@settings(max_examples=50, deadline=None)
@given(rows=packed, begin=st.integers(0, 2**40))
def test_a_position_has_the_same_prefix_in_whatever_batch_it_comes(rows: Rows, begin: int) -> None:
    whole = prefix(rows, begin, seed=3)
    n_rows = len(rows.tokens)
    parts = [prefix(rows.part(r, r + 1), begin + r, seed=3) for r in range(n_rows)]
    assert torch.equal(whole.loss_weights, torch.cat([part.loss_weights for part in parts]))
    assert torch.equal(whole.segments.prefix_length, torch.cat([part.segments.prefix_length for part in parts]))


def test_prefixes_follow_the_seed_and_differ_between_positions() -> None:
    rows = rows_of([200], 201, 1)
    lengths = {(seed, at): int(prefix(rows, at, seed).segments.prefix_length[0]) for seed in (0, 1) for at in range(50)}
    assert len(set(lengths.values())) > 50
    assert [lengths[0, at] for at in range(50)] != [lengths[1, at] for at in range(50)]
    assert int(prefix(rows, 0, 0, share=0.25).segments.prefix_length[0]) == 50


def test_numbers_are_uniform_and_independent_of_their_neighbours() -> None:
    drawn = uniform(0, "test", np.arange(400)[:, None], np.arange(250))
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_squared = ((counts - 1000.0) ** 2 / 1000).sum()
    assert chi_squared < 150  # 99 degrees of freedom: 148 is exceeded once in a thousand times
    for neighbours in (drawn[:-1] * drawn[1:], drawn[:, :-1] * drawn[:, 1:]):
        assert abs(neighbours.mean() - 0.25) < 0.003
    assert not np.array_equal(drawn, uniform(0, "other", np.arange(400)[:, None], np.arange(250)))
