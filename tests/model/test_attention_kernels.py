"""Each CPU kernel is the dense formula in float64, forwards and backwards, over any shape of a piece."""

from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.model import attention_blocks, attention_flash
from bushcraft.model.attention_cpu import segment_attention
from bushcraft.model.attention_pieces import Rule


def dense(q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64 from a matrix of all scores; the last query sees all keys."""
    n_heads, n_queries, n_keys = q_nLHE.shape[2], q_nLHE.shape[1], k_nTKE.shape[1]
    q, k, v = (x.double() for x in (q_nLHE, k_nTKE, v_nTKE))
    k, v = (x.repeat_interleave(n_heads // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("nlhe,nthe->nlht", q, k) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(1 + n_keys - n_queries)
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return torch.einsum("nlht,nthe->nlhe", scores.softmax(-1), v), scores.logsumexp(-1)


def results(q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: ModuleType | None) -> list[Tensor]:
    """Output, log-sum-exp and the three gradients; of the reference where there is no kernel."""
    torch.manual_seed(1)
    if kernel:
        rule = Rule(causal, q.shape[-1] ** -0.5)
        out, lse = kernel.forward(q, k, v, rule)
        return [out, lse, *kernel.backward(torch.randn(out.shape).to(out.dtype), q, k, v, out, lse, rule)]
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = dense(*inputs, causal)
    return [out, lse, *torch.autograd.grad(out, inputs, torch.randn(out.shape).to(q.dtype).double())]


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from([attention_blocks, attention_flash]),
    n_queries=st.integers(1, 300),
    n_more_keys=st.integers(-290, 300),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    width=st.sampled_from([8, 24]),
    causal=st.booleans(),
)
@example(kernel=attention_blocks, n_queries=256, n_more_keys=0, heads=(4, 2), width=8, causal=True)
@example(kernel=attention_blocks, n_queries=257, n_more_keys=5, heads=(4, 2), width=8, causal=True)
@example(kernel=attention_flash, n_queries=7, n_more_keys=1, heads=(4, 2), width=8, causal=True)
def test_a_piece_is_the_dense_formula(
    kernel: ModuleType, n_queries: int, n_more_keys: int, heads: tuple[int, int], width: int, causal: bool
) -> None:
    torch.manual_seed(0)
    n_keys = n_queries + abs(n_more_keys) if causal else max(1, n_queries + n_more_keys)
    q = torch.randn(2, n_queries, heads[0], width)
    k, v = (torch.randn(2, n_keys, heads[1], width) for _ in range(2))
    for ours, reference in zip(results(q, k, v, causal, kernel), results(q, k, v, causal, None), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [attention_blocks, attention_flash])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_bf16_is_as_near_as_its_rounding(kernel: ModuleType, causal: bool, scale: float) -> None:
    torch.manual_seed(0)
    q = (scale * torch.randn(2, 200, 4, 64)).bfloat16()
    k, v = (torch.randn(2, 270, 2, 64).bfloat16() for _ in range(2))
    for ours, reference in zip(results(q, k, v, causal, kernel), results(q, k, v, causal, None), strict=True):
        assert (ours.double() - reference).norm() < 0.02 * reference.norm()


def test_queries_outside_of_all_pieces_give_zeros_and_keys_of_two_pieces_get_both_gradients() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 2, 8, requires_grad=True) for _ in range(3))
    pieces = torch.tensor([[0, 0, 3, 0, 0, 3, 0], [0, 3, 4, 0, 0, 7, 1], [1, 0, 9, 1, 2, 5, 0]])
    out, _ = segment_attention(q, k, v, pieces, 8**-0.5, None, None)
    parts = [dense(q[:1, :3], k[:1, :3], v[:1, :3], False)[0], dense(q[:1, 3:7], k[:1, :7], v[:1, :7], True)[0]]
    expected = torch.cat(
        [torch.cat([*parts, torch.zeros(1, 2, 2, 8)], 1), dense(q[1:], k[1:, 2:7], v[1:, 2:7], False)[0]]
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    ours, reference = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, expected))
    for gradient, its_reference in zip(ours, reference, strict=True):
        torch.testing.assert_close(gradient, its_reference, rtol=1e-4, atol=1e-5)
