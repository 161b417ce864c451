"""Two checkpoints are the same when their tensors are, however they were cut."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.checkpoint import save_parts as saving
from bushcraft.checkpoint.difference import different_tensors
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.store.local import LocalDepot
from tests.checkpoint.layouts import CountingDepot, filled, layouts, ranks_of, save_by_ranks


@given(layouts(), st.integers(1, 200), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_tensor_at_two_layouts_is_the_same_and_one_element_is_a_difference(
    depot: LocalDepot,
    layout: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    chunk_bytes: int,
    data: st.DataObject,
) -> None:
    shape, grid, other_grid = layout
    tensor = filled(shape, torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "CHUNK_BYTES", chunk_bytes)
        one = save_by_ranks(depot, "t", ranks_of(tensor, grid))
    other = save_by_ranks(depot, "t", ranks_of(tensor, other_grid))
    assert different_tensors(depot, {"t": one}, {"t": other}) == []
    if tensor.numel():
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] += 256
        other = save_by_ranks(depot, "t", ranks_of(tensor, other_grid))
        for pair in (one, other), (other, one):
            assert different_tensors(depot, *({"t": entry} for entry in pair)) == ["t"]


def test_bits_are_compared_not_numbers(depot: LocalDepot) -> None:
    nan, zeros = torch.full((4,), torch.nan), torch.zeros(4)
    whole = save_tensors(depot, {"nan": nan, "zeros": zeros})
    halves = {"nan": save_by_ranks(depot, "nan", ranks_of(nan, (2,)))}
    halves["zeros"] = save_by_ranks(depot, "zeros", ranks_of(-zeros, (2,)))
    assert different_tensors(depot, whole, halves) == ["zeros"]


def test_tensors_of_one_side_and_of_another_shape_or_dtype_differ(depot: LocalDepot) -> None:
    one = save_tensors(depot, {"a": torch.ones(2), "b": torch.ones(2, 2), "c": torch.zeros(2), "e": torch.ones(0, 4)})
    other = save_tensors(depot, {"b": torch.ones(4), "c": torch.zeros(2).int(), "d": torch.ones(1), "e": torch.ones(0)})
    assert different_tensors(depot, one, other) == ["a", "b", "c", "d", "e"]


def test_what_was_cut_alike_is_not_read(depot: LocalDepot) -> None:
    tensor = torch.arange(24.0).reshape(6, 4)
    one, other = (save_by_ranks(depot, "t", ranks_of(tensor, (3, 2))) for _ in range(2))
    counting = CountingDepot(depot.root)
    assert different_tensors(counting, {"t": one}, {"t": other}) == []
    assert counting.n_read == 0
