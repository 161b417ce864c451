"""Attention of one piece by torch's flash kernel for the CPU.

The kernel's own causal edge begins at the upper left corner. A piece with more keys than queries (the rest of a
document after its prefix) is therefore a whole part and a square causal part, joined by their log-sum-exps; its
backward pass is the sum of those of its parts, each with the joint output and log-sum-exp (Dao et al. 2022,
arXiv:2205.14135, section 3.1 and appendix B).

Shapes: n rows, L queries, T keys, H query heads, K key/value heads, E head width.
"""

import torch
from torch import Tensor

from bushcraft.model.attention_pieces import Rule

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Output (n, L, H, E) and log-sum-exp (n, L, H) in fp32."""
    q, k, v = (x.transpose(1, 2) for x in (q_nLHE, k_nTKE, v_nTKE))
    (first, *rest) = [
        _forward(q, k[:, :, part], v[:, :, part], 0.0, edge, scale=rule.scale)
        for part, edge in _parts(q, k, rule.causal)
    ]
    out, lse = first
    for other_out, other_lse in rest:
        joint = torch.logaddexp(lse, other_lse)
        shares = ((x - joint).exp().unsqueeze(-1) for x in (lse, other_lse))
        out = sum(share * x for share, x in zip(shares, (out, other_out), strict=True)).to(q.dtype)
        lse = joint
    return out.transpose(1, 2), lse.transpose(1, 2)


def backward(
    d_out: Tensor, q_nLHE: Tensor, k_nTKE: Tensor, v_nTKE: Tensor, out: Tensor, lse_nLH: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their shapes."""
    d_out, q, k, v, out, lse = (x.transpose(1, 2) for x in (d_out, q_nLHE, k_nTKE, v_nTKE, out, lse_nLH))
    found = [
        _backward(d_out, q, k[:, :, part], v[:, :, part], out, lse, 0.0, edge, scale=rule.scale)
        for part, edge in _parts(q, k, rule.causal)
    ]
    dq, dk, dv = zip(*found, strict=True)
    return sum(dq[1:], dq[0]).transpose(1, 2), torch.cat(dk, 2).transpose(1, 2), torch.cat(dv, 2).transpose(1, 2)


def _parts(q_nHLE: Tensor, k_nKTE: Tensor, causal: bool) -> list[tuple[slice, bool]]:
    """Keys that one call takes, and whether its edge is causal."""
    before = k_nKTE.shape[2] - q_nHLE.shape[2]
    if not causal or before == 0:
        return [(slice(None), causal)]
    assert before > 0, "a causal piece has as many keys as queries, or more"
    return [(slice(before), False), (slice(before, None), True)]
