"""Each mask sees what its definition says, and attention over its pieces is dense masked attention in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.model import attention
from bushcraft.model.attention import Mask, Segments, attend, bidirectional_mask, cross_mask, prefix_mask
from tests.model.attention_cases import Case, cases, dense, seen

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
    visible = seen_by_definition(kind, segments_of(queries), segments_of(keys), q_shape, k_shape)
    assert mask.n_scores() == int(visible.sum())
    direction = torch.randn(q.shape)
    results = []
    for out in (attend(q, k, v, mask), dense(q, k, v, visible)):
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


def results(case: Case, inputs: list[Tensor]) -> list[list[Tensor]]:
    """Output and gradients, ours and the reference's."""
    out = attend(*inputs, case.mask, case.scale, case.soft_cap)
    direction = torch.randn(out.shape).to(out.dtype)
    return [[out, *torch.autograd.grad(out, inputs, direction)], case.reference(inputs, direction)]


@settings(max_examples=250, deadline=None)
@given(case=cases())
def test_any_pieces_windows_and_soft_caps_are_the_dense_formula(case: Case) -> None:
    assert case.mask.n_scores() == int(seen(case.mask, case.queries, case.keys).sum())
    for ours, reference in zip(*results(case, case.inputs(torch.float32)), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_bf16_is_as_near_as_its_rounding(case: Case) -> None:
    for ours, reference in zip(*results(case, case.inputs(torch.bfloat16)), strict=True):
        assert (ours.double() - reference).norm() <= 0.02 * reference.norm() + 1e-3


def one_piece(n_queries: int, n_keys: int, causal: bool, window: int | None, soft_cap: float | None = None) -> Case:
    mask = Mask(torch.tensor([[0, 0, n_queries, 0, 0, n_keys, int(causal)]]), window)
    return Case(mask, (1, n_queries), (1, n_keys), 2, None, soft_cap)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 7, 64, 100, 200])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_a_window_over_many_blocks(causal: bool, window: int, soft_cap: float | None) -> None:
    case = one_piece(300, 310, causal, window, soft_cap)
    assert case.mask.n_scores() == int(seen(case.mask, case.queries, case.keys).sum())
    for ours, reference in zip(*results(case, case.inputs(torch.float32)), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)
    for ours, reference in zip(*results(case, case.inputs(torch.bfloat16, sharpness=4.0)), strict=True):
        assert (ours.double() - reference).norm() <= 0.02 * reference.norm() + 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [200, 400, 700])
def test_whichever_kernels_are_faster_for_the_two_passes(length: int, causal: bool) -> None:
    case = one_piece(length, length, causal, None)
    for ours, reference in zip(*results(case, case.inputs(torch.float32)), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)
    for ours, reference in zip(*results(case, case.inputs(torch.bfloat16, width=64)), strict=True):
        assert (ours.double() - reference).norm() <= 0.02 * reference.norm()


def test_scores_of_millions_of_positions_are_counted_at_once() -> None:
    n = 1 << 20
    assert one_piece(n, n, True, None).mask.n_scores() == n * (n + 1) // 2
    assert one_piece(n, n, True, 4096).mask.n_scores() == 4096 * 4097 // 2 + (n - 4096) * 4096


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_no_smaller_than_the_piece_changes_no_bit(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 40, 4, 8), torch.randn(1, 50, 2, 8), torch.randn(1, 50, 2, 8)
    pieces = torch.tensor([[0, 0, 40, 0, 0, 50, int(causal)]])
    assert torch.equal(attend(q, k, v, Mask(pieces, 50)), attend(q, k, v, Mask(pieces)))
    assert not torch.equal(attend(q, k, v, Mask(pieces, 49)), attend(q, k, v, Mask(pieces)))


def test_no_keys_at_all_give_zeros() -> None:
    q, k = torch.randn(2, 5, 4, 8, requires_grad=True), torch.randn(2, 0, 2, 8, requires_grad=True)
    for pieces in (torch.zeros(0, 7, dtype=torch.int64), torch.tensor([[1, 0, 5, 0, 0, 0, 0]])):
        out = attend(q, k, k, Mask(pieces))
        assert not out.any()
        assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), (q, k)))


@pytest.mark.parametrize("length", [20, 400])
@pytest.mark.parametrize("window", [None, 9])
def test_inputs_of_any_strides(length: int, window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 8, length, 2, 4).permute(0, 4, 2, 3, 1)  # (B, S, H, E), no axis where it is expected
    mask = Mask(torch.tensor([[0, 0, length, 1, 0, length, 1], [3, 0, length, 3, 0, length, 1]]), window)
    found = []
    for inputs in ([q, k, v], [x.contiguous() for x in (q, k, v)]):
        leaves = [x.requires_grad_() for x in inputs]
        out = attend(*leaves, mask)
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])  # the sum's gradient has strides of 0
    torch.testing.assert_close(*found)


def test_one_document_of_the_encoder_may_serve_several_rows() -> None:
    mask = Mask(torch.tensor([[row, 0, 6, 1, 2, 5, 0] for row in (0, 1, 3)]))
    case = Case(mask, (4, 6), (2, 9), 2, None, None)
    for ours, reference in zip(*results(case, case.inputs(torch.float32)), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (3, 2.0)])
def test_attention_operator_is_sound_for_the_compiler(window: int | None, soft_cap: float | None) -> None:
    q, k = torch.randn(2, 6, 4, 8, requires_grad=True), torch.randn(2, 6, 2, 8, requires_grad=True)
    pieces = prefix_mask(segments_of([[(2, 4), (0, 2)], [(0, 6)]])).pieces
    torch.library.opcheck(
        torch.ops.bushcraft.segment_attention.default, (q, k, k.clone(), pieces, 0.4, window, soft_cap)
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_compiler_takes_all_of_it_into_one_graph(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    q, k = (torch.randn(1, 9, n_heads, 8).to(device, torch.bfloat16) for n_heads in (4, 2))
    mask = Mask(torch.tensor([[0, 0, 9, 0, 0, 9, 1]]), 4)
    out, expected = compiled(q, k, k, mask), attend(q, k, k, mask)
    assert out.shape == expected.shape
    assert device == "meta" or torch.equal(out, expected)


@pytest.mark.parametrize(
    ("device", "dtype", "soft_cap", "backend"),
    [
        ("cpu", torch.bfloat16, 5.0, "segment_attention"),
        ("meta", torch.bfloat16, None, "varlen_attention"),
        ("meta", torch.bfloat16, 5.0, "flex_segment_attention"),
        ("meta", torch.float32, None, "flex_segment_attention"),
    ],
)
def test_the_backend_follows_from_device_dtype_and_soft_cap(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, soft_cap: float | None, backend: str
) -> None:
    used = []

    def stand_in(name: str) -> Callable[..., tuple[Tensor]]:
        return lambda q, *_: used.append(name) or ((q,) if name != "flex_segment_attention" else q)

    for module, name in (
        (attention, "segment_attention"),
        (attention.attention_varlen, "varlen_attention"),
        (attention, "flex_segment_attention"),
    ):
        monkeypatch.setattr(module, name, stand_in(name))
    q = torch.empty(1, 4, 2, 8, device=device, dtype=dtype)
    assert attend(q, q, q, Mask(torch.tensor([[0, 0, 4, 0, 0, 4, 1]])), soft_cap=soft_cap) is q
    assert used == [backend]
