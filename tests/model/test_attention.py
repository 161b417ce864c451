"""Each mask sees what its definition says, and attention over its pieces is dense masked attention in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.model.attention import Mask, Segments, attend, bidirectional_mask, cross_mask, prefix_mask

Lengths = list[list[tuple[int, int]]]
"""(prefix, length) of each segment of each row."""


def segments_of(rows: Lengths) -> Segments:
    found = [(r, sum(n for _, n in row[:i]), *piece) for r, row in enumerate(rows) for i, piece in enumerate(row)]
    return Segments(*torch.tensor(found, dtype=torch.int32).T)


def places(segments: Segments, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each position of (B, S): its segment's number, its place there, and that segment's prefix."""
    numbers = torch.arange(len(segments.row)).repeat_interleave(segments.length.long())
    return numbers.view(shape), segments.positions(*shape), segments.prefix_length[numbers].view(shape)


def seen_by_definition(kind: str, queries: Segments, keys: Segments, q: tuple[int, int], k: tuple[int, int]) -> Tensor:
    """(B, S, B, T): whether a query sees a key, from the words of the definition, position by position."""
    (q_number, q_place, prefix), (k_number, k_place, _) = places(queries, q), places(keys, k)
    same = q_number[:, :, None, None] == k_number
    if kind != "prefix":
        return same
    before = k_place <= q_place[:, :, None, None]
    both_in_prefix = (k_place < prefix[:, :, None, None]) & (q_place < prefix)[:, :, None, None]
    return same & (before | both_in_prefix)


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention from a matrix of all scores, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhe,ckhe->bqhck", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, :, None], float("-inf")).flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bqhck,ckhe->bqhe", weights, v)


@st.composite
def packings(draw: st.DrawFn) -> Lengths:
    """Rows of one width, cut at random."""
    width = draw(st.integers(1, 24))
    rows: Lengths = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, width - 1), max_size=4))) if width > 1 else []
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, width], strict=True)]
        rows.append([(draw(st.integers(0, n)), n) for n in lengths])
    return rows


def check(kind: str, mask: Mask, queries: Lengths, keys: Lengths, groups: int) -> None:
    torch.manual_seed(0)
    q_shape, k_shape = ((len(rows), sum(n for _, n in rows[0])) for rows in (queries, keys))
    q = torch.randn(*q_shape, 4, 8, requires_grad=True)
    k, v = (torch.randn(*k_shape, 4 // groups, 8, requires_grad=True) for _ in range(2))
    seen = seen_by_definition(kind, segments_of(queries), segments_of(keys), q_shape, k_shape)
    assert mask.n_scores() == int(seen.sum())
    direction = torch.randn(q.shape)
    results = []
    for out in (attend(q, k, v, mask), dense(q, k, v, seen)):
        results.append([out, *torch.autograd.grad(out, (q, k, v), direction.to(out.dtype))])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference.to(ours.dtype), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(rows=packings(), groups=st.sampled_from([1, 2, 4]))
def test_prefix_and_causal_attention(rows: Lengths, groups: int) -> None:
    check("prefix", prefix_mask(segments_of(rows)), rows, rows, groups)
    causal = [[(0, length) for _, length in row] for row in rows]
    check("prefix", prefix_mask(segments_of(causal)), causal, causal, groups)


@settings(max_examples=30, deadline=None)
@given(rows=packings(), groups=st.sampled_from([1, 2, 4]))
def test_bidirectional_attention(rows: Lengths, groups: int) -> None:
    check("bidirectional", bidirectional_mask(segments_of(rows)), rows, rows, groups)


@settings(max_examples=60, deadline=None)
@given(queries=packings(), widths=st.lists(st.integers(1, 9), min_size=15, max_size=15), groups=st.sampled_from([1, 2]))
def test_cross_attention_between_packings_that_differ(queries: Lengths, widths: list[int], groups: int) -> None:
    n_segments = sum(map(len, queries))
    keys = [[(0, width) for width in widths[:n_segments]]]  # one row, in the order of the queries' segments
    check("cross", cross_mask(segments_of(queries), segments_of(keys)), queries, keys, groups)


def test_a_decoder_without_its_encoder_is_refused() -> None:
    with pytest.raises(AssertionError, match="belongs to one of the encoder"):
        cross_mask(segments_of([[(0, 2), (0, 3)]]), segments_of([[(0, 5)]]))


def test_attention_operator_is_sound_for_the_compiler() -> None:
    q, k = torch.randn(2, 6, 4, 8, requires_grad=True), torch.randn(2, 6, 2, 8, requires_grad=True)
    pieces = prefix_mask(segments_of([[(2, 4), (0, 2)], [(0, 6)]])).pieces
    torch.library.opcheck(torch.ops.bushcraft.segment_attention.default, (q, k, k.clone(), pieces))
