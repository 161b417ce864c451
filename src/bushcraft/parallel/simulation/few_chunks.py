"""The losses of a simulated rank: of chunks that are all alike a few are computed, the bytes of the others counted.

Memory is what `cross_entropy` has: the gradients of all positions, and the logits of the chunk it is at.
Shapes: N positions, D model width, V vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bushcraft.model import cross_entropy as losses
from bushcraft.parallel.parallel_model import Losses
from bushcraft.parallel.simulation.traffic import Traffic

WHOLE_CHUNKS = 2
"""The second has what the first leaves behind."""


def losses_of_few_chunks(traffic: Traffic) -> Losses:
    """What takes the place of `cross_entropy`."""
    return partial(_cross_entropy, traffic)


def _cross_entropy(traffic: Traffic, h_ND: Tensor, w_VD: Tensor, *rest: Any) -> Any:
    chunk = max(1, losses.CHUNK_LOGITS // len(w_VD))
    n_kept = WHOLE_CHUNKS * chunk + len(h_ND) % chunk
    if n_kept >= len(h_ND):
        return losses.cross_entropy(h_ND, w_VD, *rest)
    return _FewChunks.apply(traffic, n_kept, h_ND, w_VD, *rest)  # type: ignore[no-untyped-call]


class _FewChunks(torch.autograd.Function):
    """The nodes and the tensors of `cross_entropy`'s own."""

    @staticmethod
    def forward(
        ctx: Any,
        traffic: Traffic,
        n_kept: int,
        h_ND: Tensor,
        w_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        z_loss: float,
        soft_cap: float | None,
        vocabulary: losses.Vocabulary,
    ) -> Any:
        d_others = torch.empty_like(h_ND[n_kept:])
        with traffic.times(len(h_ND), n_kept):
            nll, z, d_h, d_w = losses._losses(
                h_ND[:n_kept], w_VD, targets_N[:n_kept], weights_N[:n_kept], z_loss, soft_cap, vocabulary, True
            )
        ctx.save_for_backward(d_h, d_others, d_w)
        ctx.mark_non_differentiable(z)
        return nll, z

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor, _d_z: Tensor) -> tuple[Tensor | None, ...]:
        d_h, d_others, d_w = ctx.saved_tensors
        d_h_ND = d_h.new_empty(len(d_h) + len(d_others), d_h.shape[1])
        return None, None, d_h_ND, d_w * d_nll, None, None, None, None, None
