"""Boxes are rectangles of global tensors: what they share and where they lie is what indexing says."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.parallel.box import Box, Part


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    """A box of a tensor of that shape, empty ones too."""
    bounds = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Box(tuple(b for b, _ in bounds), tuple(e - b for b, e in bounds))


def marked(shape: tuple[int, ...], box: Box) -> Tensor:
    """A tensor that is 1 in the box."""
    found = torch.zeros(shape, dtype=torch.int64)
    found[box.within(Box.whole(shape))] = 1
    return found


@given(st.data(), st.lists(st.integers(0, 5), max_size=3).map(tuple))
def test_the_intersection_holds_the_elements_of_both(data: st.DataObject, shape: tuple[int, ...]) -> None:
    one, other = data.draw(boxes(shape)), data.draw(boxes(shape))
    shared = one.intersection(other)
    assert torch.equal(marked(shape, shared), marked(shape, one) * marked(shape, other))
    assert shared.numel == int(marked(shape, shared).sum())
    assert shared.is_empty == (shared.numel == 0)


@given(st.data(), st.lists(st.integers(0, 5), max_size=3).map(tuple))
def test_a_part_of_a_box_is_found_in_the_tensor_that_holds_the_box(data: st.DataObject, shape: tuple[int, ...]) -> None:
    whole = torch.arange(Box.whole(shape).numel).reshape(shape)
    outer, other = data.draw(boxes(shape)), data.draw(boxes(shape))
    inner = outer.intersection(other)
    held = whole[outer.within(Box.whole(shape))]
    assert torch.equal(held[inner.within(outer)], whole[inner.within(Box.whole(shape))])


def test_boxes_that_only_touch_share_nothing() -> None:
    assert Box((0, 0), (2, 3)).intersection(Box((2, 0), (2, 3))).is_empty
    assert Box((0, 0), (2, 3)).intersection(Box((1, 2), (2, 3))) == Box((1, 2), (1, 1))


def test_a_scalar_is_one_element() -> None:
    assert Box.whole(()) == Box((), ())
    assert (Box.whole(()).numel, Box.whole(()).is_empty) == (1, False)


def test_a_whole_tensor_is_one_part_that_is_written() -> None:
    tensor = torch.ones(2, 3)
    part = Part.whole(tensor)
    assert part.tensor is tensor
    assert (part.box, part.global_shape, part.writes) == (Box((0, 0), (2, 3)), (2, 3), True)
