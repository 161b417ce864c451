"""Attention of one piece by matrix products over blocks of queries: what the flash kernel does not do well or at all.

Scores of a block exist only while it is worked on, and only those of keys that one of its queries sees: a window
costs what it lets through, and the edges of a block. The backward pass makes the scores again, less the saved
log-sum-exp, by one product: [q, -lse] · [k, 1]. In bf16 the log-sum-exp is a sum of three such columns, so that
its rounding does not matter, and what is rounded is the logarithm of the probability, small where that is large.
Soft-capped scores are made in fp32 both times.

Shapes: n rows, L queries, T keys, H query heads, K key/value heads, G = H / K query heads of one key head,
E head width, R queries of a block, C keys that a block sees.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bushcraft.model.attention_pieces import Rule

BLOCK = {torch.float32: 64, torch.bfloat16: 256}
"""Queries at once. Half a block of each edge of a block is computed in vain."""
WINDOWED_BLOCK = {torch.float32: 64, torch.bfloat16: 128}
"""A window has two edges."""

Edge = tuple[slice, Tensor]
"""Some of the keys that a block sees, and which of them are hidden from whom, (R, C) bool."""


def forward(q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Output (n, L, H, E) and log-sum-exp (n, L, H) in fp32. Scores are made in fp32. Each query sees a key."""
    n, length, n_heads, _ = q_nLHE.shape
    k_bET = _keys_for_scores(k_nTKE, rule)
    v_bTE, q_bGLE = _by_head(v_nTKE), _grouped(q_nLHE, k_nTKE)
    out = torch.empty_like(q_nLHE, memory_format=torch.contiguous_format)
    lse = torch.empty(n, length, n_heads)
    for rows, keys, edges in _blocks(q_nLHE, k_nTKE, rule):
        scores = torch.bmm(q_bGLE[:, :, rows].float().flatten(1, 2), k_bET[:, :, keys])
        if rule.soft_cap is not None:
            scores = scores.tanh_().mul_(rule.soft_cap)
        scores = _hide(scores, edges)
        p = scores.softmax(-1)
        # The largest probability is exact enough to give the denominator without another exp of each score.
        lse[:, rows] = _ungrouped((scores.amax(-1) - p.amax(-1).log()).unsqueeze(-1), n, n_heads)[..., 0]
        out[:, rows] = _ungrouped(torch.bmm(p.to(v_bTE.dtype), v_bTE[:, keys]), n, n_heads)
    return out, lse


def backward(
    d_out: Tensor, q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, out: Tensor, lse_nLH: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their shapes."""
    n, _, n_heads, width = q_nLHE.shape
    delta_nLH = torch.linalg.vecdot(d_out.float(), out.float())
    q_bGLX = _grouped(_with_columns(q_nLHE * rule.scale, -lse_nLH), k_nTKE)
    do_bGLX = _grouped(_with_columns(d_out, -delta_nLH), k_nTKE)
    n_columns = q_bGLX.shape[-1] - width
    k_bTE = _by_head(k_nTKE)
    k_bXT, v_bXT = (_with_ones(_by_head(x), n_columns).transpose(1, 2) for x in (k_nTKE, v_nTKE))
    dq = torch.empty_like(q_nLHE, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(k_bTE.shape) for _ in range(2))
    for rows, keys, edges in _blocks(q_nLHE, k_nTKE, rule):
        q_bRX, do_bRX = (x[:, :, rows].flatten(1, 2) for x in (q_bGLX, do_bGLX))
        if rule.soft_cap is None:
            p = slopes = _hide(torch.bmm(q_bRX, k_bXT[:, :, keys]), edges).exp_()
        else:
            p, slopes = _capped(q_nLHE[:, rows], k_nTKE[:, keys], lse_nLH[:, rows], edges, rule)
        d_scores = torch.bmm(do_bRX, v_bXT[:, :, keys]).mul_(slopes)
        dq[:, rows] = _ungrouped(torch.bmm(d_scores, k_bTE[:, keys]).mul_(rule.scale), n, n_heads)
        _add_product(dk[:, keys], d_scores.transpose(1, 2), q_bRX[..., :width])
        _add_product(dv[:, keys], p.transpose(1, 2), do_bRX[..., :width])
    return dq, _back(dk, k_nTKE), _back(dv, v_nTKE)


def _capped(q_nRHE: Tensor, k_nCKE: Tensor, lse_nRH: Tensor, edges: list[Edge], rule: Rule) -> tuple[Tensor, Tensor]:
    """Probabilities of soft-capped scores, and the same times the cap's slope 1 - tanh², (n * K, G * R, C) each."""
    assert rule.soft_cap is not None
    q_bRE, lse_bR1 = (_grouped(x, k_nCKE).flatten(1, 2) for x in (q_nRHE.float(), lse_nRH.unsqueeze(-1)))
    tanh = torch.bmm(q_bRE, _keys_for_scores(k_nCKE, rule)).tanh_()
    p = _hide(tanh * rule.soft_cap - lse_bR1, edges).exp_()
    slopes = torch.addcmul(p, tanh.square_(), p, value=-1)
    return p.to(q_nRHE.dtype), slopes.to(q_nRHE.dtype)


def _keys_for_scores(k_nTKE: Tensor, rule: Rule) -> Tensor:
    """(n * K, E, T) in fp32: queries times these are scores, in units of the soft cap where there is one."""
    return (_by_head(k_nTKE).float() * (rule.scale / (rule.soft_cap or 1.0))).transpose(1, 2)


def _blocks(q_nLHE: Tensor, k_nTKE: Tensor, rule: Rule) -> Iterator[tuple[slice, slice, list[Edge]]]:
    """Blocks of queries, the keys that one of them sees, and the edges of these keys."""
    length, n_keys = q_nLHE.shape[1], k_nTKE.shape[1]
    block = (BLOCK if rule.window is None else WINDOWED_BLOCK)[q_nLHE.dtype]
    back, ahead = rule.reach(length, n_keys)
    for begin in range(0, length, block):
        size = min(block, length - begin)
        diagonal = begin + n_keys - length  # of the block's first query
        first, end = diagonal - back + 1, diagonal + ahead  # what that query sees; both move by one a query
        keys = slice(max(0, first), min(n_keys, end + size - 1))
        edges = []
        if (n_left := first + size - 1 - keys.start) > 0:
            edges.append((slice(n_left), _hidden(size, n_left).tril_(first - keys.start - 1)))
        if (n_right := keys.stop - end) > 0:
            edges.append((slice(-n_right, None), _hidden(size, n_right).triu_()))
        yield slice(begin, begin + size), keys, edges


def _hidden(n_queries: int, n_keys: int) -> Tensor:
    return torch.ones(n_queries, n_keys, dtype=torch.bool)


def _hide(scores_bXC: Tensor, edges: list[Edge]) -> Tensor:
    """Scores, in place, with -inf where a key is hidden; X is the heads of a group times the queries of a block."""
    for keys, hidden_RC in edges:
        scores_bXC.view(len(scores_bXC), -1, len(hidden_RC), scores_bXC.shape[-1])[..., keys].masked_fill_(
            hidden_RC, -torch.inf
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
