"""Attention of one piece by matrix products over blocks of queries: what the flash kernel does not do well or at all.

Scores of a block exist only while it is worked on. The backward pass makes them again, less the saved
log-sum-exp, by one product: [q, -lse] · [k, 1]. In bf16 the log-sum-exp is a sum of three such columns, so that
its rounding does not matter, and what is rounded is the logarithm of the probability, small where that is large.

Shapes: n rows, L queries, T keys, H query heads, K key/value heads, G = H / K query heads of one key head,
E head width, R queries of a block, C keys that a block sees.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {torch.float32: 64, torch.bfloat16: 128}
"""Queries at once; half a block of each block's causal edge is computed in vain."""


def forward(q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output (n, L, H, E) and log-sum-exp (n, L, H) in fp32. Scores are made in fp32."""
    n, length, n_heads, width = q_nLHE.shape
    k_bET = (_by_head(k_nTKE).float() * width**-0.5).transpose(1, 2)
    v_bTE, q_bGLE = _by_head(v_nTKE), _grouped(q_nLHE, k_nTKE)
    out = torch.empty_like(q_nLHE, memory_format=torch.contiguous_format)
    lse = torch.empty(n, length, n_heads)
    for rows, keys, hidden in _blocks(q_nLHE, k_nTKE, causal):
        q_bXE = q_bGLE[:, :, rows].float().flatten(1, 2)
        scores = _hide(torch.bmm(q_bXE, k_bET[:, :, keys]), hidden)
        p = scores.softmax(-1)
        # The largest probability is exact enough to give the denominator without another exp of each score.
        lse[:, rows] = _ungrouped((scores.amax(-1) - p.amax(-1).log()).unsqueeze(-1), n, n_heads)[..., 0]
        out[:, rows] = _ungrouped(torch.bmm(p.to(v_bTE.dtype), v_bTE[:, keys]), n, n_heads)
    return out, lse


def backward(
    d_out: Tensor, q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, out: Tensor, lse_nLH: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their shapes."""
    n, _, n_heads, width = q_nLHE.shape
    delta_nLH = torch.linalg.vecdot(d_out.float(), out.float())
    q_bGLX = _grouped(_with_columns(q_nLHE * width**-0.5, -lse_nLH), k_nTKE)
    do_bGLX = _grouped(_with_columns(d_out, -delta_nLH), k_nTKE)
    n_columns = q_bGLX.shape[-1] - width
    k_bTE = _by_head(k_nTKE)
    k_bXT, v_bXT = (_with_ones(_by_head(x), n_columns).transpose(1, 2) for x in (k_nTKE, v_nTKE))
    dq = torch.empty_like(q_nLHE, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(k_bTE.shape) for _ in range(2))
    for rows, keys, hidden in _blocks(q_nLHE, k_nTKE, causal):
        q_bRX, do_bRX = (x[:, :, rows].flatten(1, 2) for x in (q_bGLX, do_bGLX))
        p = _hide(torch.bmm(q_bRX, k_bXT[:, :, keys]), hidden).exp_()
        d_scores = torch.bmm(do_bRX, v_bXT[:, :, keys]).mul_(p)
        dq[:, rows] = _ungrouped(torch.bmm(d_scores, k_bTE[:, keys]).mul_(width**-0.5), n, n_heads)
        _add_product(dk[:, keys], d_scores.transpose(1, 2), q_bRX[..., :width])
        _add_product(dv[:, keys], p.transpose(1, 2), do_bRX[..., :width])
    return dq, _back(dk, k_nTKE), _back(dv, v_nTKE)


def _blocks(q_nLHE: Tensor, k_nTKE: Tensor, causal: bool) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Blocks of queries, the keys that they see, and which of the last keys are hidden from whom, (R, R) bool."""
    length, n_keys, block = q_nLHE.shape[1], k_nTKE.shape[1], BLOCK[q_nLHE.dtype]
    before = n_keys - length
    for begin in range(0, length, block):
        end = min(begin + block, length)
        if causal:
            size = end - begin
            yield slice(begin, end), slice(before + end), torch.ones(size, size, dtype=torch.bool).triu_(1)
        else:
            yield slice(begin, end), slice(n_keys), None


def _hide(scores_bXC: Tensor, hidden_RR: Tensor | None) -> Tensor:
    """Scores, in place, with -inf where a block's own last keys come after its query."""
    if hidden_RR is not None:
        size = len(hidden_RR)
        scores_bXC.view(len(scores_bXC), -1, size, scores_bXC.shape[-1])[..., -size:].masked_fill_(
            hidden_RR, float("-inf")
        )
    return scores_bXC


def _by_head(x_nTKE: Tensor) -> Tensor:
    """(n * K, T, E)."""
    return x_nTKE.transpose(1, 2).flatten(0, 1)


def _grouped(q_nLHX: Tensor, k_nTKE: Tensor) -> Tensor:
    """(n * K, G, L, X): the query heads of each key head side by side."""
    return q_nLHX.view(*q_nLHX.shape[:2], k_nTKE.shape[2], -1, q_nLHX.shape[-1]).permute(0, 2, 3, 1, 4).flatten(0, 1)


def _ungrouped(x_bXE: Tensor, n: int, n_heads: int) -> Tensor:
    """(n * K, G * R, E) → (n, R, H, E)."""
    return x_bXE.view(n, n_heads, -1, x_bXE.shape[-1]).transpose(1, 2)


def _back(x_bTE: Tensor, like_nTKE: Tensor) -> Tensor:
    return x_bTE.view(len(like_nTKE), -1, *x_bTE.shape[1:]).transpose(1, 2).to(like_nTKE.dtype)


def _with_columns(x_nLHE: Tensor, sums_nLH: Tensor) -> Tensor:
    """`x` and beside it columns whose sum is `sums`, in the dtype of `x`: one in fp32, three in bf16."""
    columns, rest = [], sums_nLH
    for _ in range(1 if x_nLHE.dtype is torch.float32 else 3):
        columns.append(rest.to(x_nLHE.dtype).unsqueeze(-1))
        rest = rest - columns[-1][..., 0].float()
    return torch.cat([x_nLHE, *columns], -1)


def _with_ones(x_bTE: Tensor, n_columns: int) -> Tensor:
    return torch.cat([x_bTE, x_bTE.new_ones(*x_bTE.shape[:-1], n_columns)], -1)


def _add_product(total_bTE: Tensor, a_bTX: Tensor, b_bXE: Tensor) -> None:
    """total += a @ b, the sum over blocks in fp32."""
    if a_bTX.dtype is torch.float32:
        total_bTE.baddbmm_(a_bTX, b_bXE)
    else:
        total_bTE.add_(torch.bmm(a_bTX, b_bXE))
