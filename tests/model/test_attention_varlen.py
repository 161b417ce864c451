"""What the flash kernel for packed sequences is told on CUDA, is the mask: a kernel in float64 that reads the same
arguments gives the dense formula, forwards and backwards."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from torch import Tensor

from bushcraft.model import attention_varlen
from bushcraft.model.attention import Mask
from bushcraft.model.attention_varlen import Call, takes, varlen_attention
from tests.model.attention_cases import Case, cases


def sequences(cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Iterator[tuple[slice, slice]]:
    """Queries and keys of each sequence, and that the arguments are sound."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert len(cu_q) == len(cu_k)
    assert max_q >= cu_q.diff().max()
    assert max_k >= cu_k.diff().max()
    for i in range(len(cu_q) - 1):
        yield slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))


def scores(q: Tensor, k: Tensor, causal: bool, window: tuple[int, int], max_k: int, scale: float) -> Tensor:
    """(L, H, T) as the kernel makes them: a window that is not smaller than max_k is none."""
    left, right = (-1 if side >= max_k else side for side in window)
    right = 0 if causal else right
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None] - (len(k) - len(q))
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    return (torch.einsum("lhe,the->lht", q, k) * scale).masked_fill(hidden[:, None], -torch.inf)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    _dropout: float,
    causal: bool,
    _debug: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor]:
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan)
    for rows, keys in sequences(cu_q, cu_k, max_q, max_k):
        qs, ks, vs = q[rows].double(), k[keys].double(), v[keys].double()
        s = scores(qs, ks, causal, (window_size_left, window_size_right), max_k, scale)
        vs = vs.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        out[rows], lse[rows] = torch.einsum("lht,the->lhe", s.softmax(-1), vs).float(), s.logsumexp(-1).float()
    return out, lse.T.contiguous()


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    _dropout: float,
    causal: bool,
    _seed: Tensor,
    _offset: Tensor,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the saved output and log-sum-exp, as the kernel (Dao et al. 2022, appendix B)."""
    assert lse.is_contiguous()
    gradients = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    groups = q.shape[1] // k.shape[1]
    for rows, keys in sequences(cu_q, cu_k, max_q, max_k):
        qs, ks, vs, do, o = (x.double() for x in (q[rows], k[keys], v[keys], d_out[rows], out[rows]))
        s = scores(qs, ks, causal, (window_size_left, window_size_right), max_k, scale)
        p = (s - lse.T[rows].double()[:, :, None]).exp()
        ks, vs = (x.repeat_interleave(groups, dim=1) for x in (ks, vs))
        ds = p * (torch.einsum("lhe,the->lht", do, vs) - (do * o).sum(-1)[:, :, None]) * scale
        dk, dv = torch.einsum("lht,lhe->the", ds, qs), torch.einsum("lht,lhe->the", p, do)
        gradients[0][rows] = torch.einsum("lht,the->lhe", ds, ks).float()
        gradients[1][keys], gradients[2][keys] = (x.unflatten(1, (-1, groups)).sum(2).float() for x in (dk, dv))
    return gradients[0], gradients[1], gradients[2]


@pytest.fixture
def reference_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_varlen, "_forward", forward)
    monkeypatch.setattr(attention_varlen, "_backward", backward)


def check(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    out, _ = varlen_attention(
        *inputs, case.mask.pieces, 8**-0.5 if case.scale is None else case.scale, case.mask.window
    )
    direction = torch.randn(out.shape)
    ours = [out, *torch.autograd.grad(out, inputs, direction)]
    for found, expected in zip(ours, case.reference(inputs, direction), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("reference_kernel")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(soft_caps=False))
@example(case=Case(Mask(torch.tensor([[0, 0, 10, 0, 0, 2, 0]]), 4), (1, 10), (1, 2), 1, None, None))
def test_arguments_of_random_masks(case: Case) -> None:
    check(case)


def calls(mask: Mask, width: int) -> tuple[Call, ...]:
    device = torch.device("cpu")
    return attention_varlen._calls(mask.pieces.numpy().tobytes(), mask.window, width, width, device)


def test_a_packed_causal_mask_is_one_call_that_copies_nothing() -> None:
    (call,) = calls(Mask(torch.tensor([[1, 0, 8, 1, 0, 8, 1], [0, 0, 5, 0, 0, 5, 1], [0, 5, 3, 0, 5, 3, 1]])), 8)
    assert call.queries == call.keys == slice(0, 16)
    assert call.cu_queries.tolist() == call.cu_keys.tolist() == [0, 5, 8, 16]
    assert (call.max_queries, call.max_keys, call.causal, call.window) == (8, 8, True, (-1, 0))
    assert call.arguments()[-1] is True


def test_a_packed_prefix_mask_is_two_calls_over_disjoint_queries() -> None:
    pieces = [[0, 0, 2, 0, 0, 2, 0], [0, 5, 1, 0, 5, 1, 0], [0, 2, 3, 0, 0, 5, 1], [0, 6, 2, 0, 5, 3, 1]]
    whole, causal = calls(Mask(torch.tensor(pieces)), 8)
    assert isinstance(whole.queries, Tensor)
    assert isinstance(causal.queries, Tensor)
    assert whole.queries.tolist() == [0, 1, 5]
    assert causal.queries.tolist() == [2, 3, 4, 6, 7]
    assert causal.keys == slice(0, 8)
    assert (whole.window, causal.window) == ((-1, -1), (-1, 0))
    assert causal.cu_keys.tolist() == [0, 5, 8]


def test_a_window_is_a_window_of_the_kernel_where_it_hides_anything() -> None:
    pieces = torch.tensor([[0, 0, 8, 0, 0, 8, 1]])
    (narrow,), (wide,) = calls(Mask(pieces, 3), 8), calls(Mask(pieces, 8), 8)
    assert narrow.window == (2, 0)
    assert narrow.arguments()[-1] is False  # causal and a window together are a window with no key ahead
    assert wide.window == (-1, 0)


def test_what_the_kernel_takes() -> None:
    assert takes(torch.empty(1, 1, 1, 128, dtype=torch.bfloat16))
    assert not takes(torch.empty(1, 1, 1, 128))
    assert not takes(torch.empty(1, 1, 1, 20, dtype=torch.bfloat16))
    assert not takes(torch.empty(1, 1, 1, 512, dtype=torch.bfloat16))


def test_the_kernels_have_the_arguments_that_they_are_given() -> None:
    names = {
        op: [argument.name for argument in op.default._schema.arguments]
        for op in (torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward)
    }
    at = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    by_name = {"scale", "window_size_left", "window_size_right"}
    forward_names, backward_names = names.values()
    assert forward_names[:10] == ["query", "key", "value", *at, "return_debug_mask"]
    saved = ["grad_out", "query", "key", "value", "out", "logsumexp"]
    assert backward_names[:14] == [*saved, *at, "rng_state", "unused"]
    assert by_name <= set(forward_names)
    assert by_name <= set(backward_names)


@pytest.mark.usefixtures("reference_kernel")
def test_the_operator_is_sound_for_the_compiler() -> None:
    q, k = torch.randn(2, 6, 4, 8, requires_grad=True), torch.randn(2, 6, 2, 8, requires_grad=True)
    pieces = torch.tensor([[0, 0, 2, 0, 0, 2, 0], [0, 2, 4, 0, 0, 6, 1], [1, 0, 6, 1, 0, 6, 1]])
    torch.library.opcheck(torch.ops.bushcraft.varlen_attention.default, (q, k, k.clone(), pieces, 0.4, 3))
