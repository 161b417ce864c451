"""The output layer and its loss in one: logits are made, used and dropped chunk by chunk.

The gradient of the logits is (softmax - one-hot), known as soon as the logits are; so the forward pass makes
both gradients and the logits never outlive their chunk (Hsu et al. 2024, Liger kernel, arXiv:2410.10989).
Shapes: N positions, D model width, V vocabulary, C positions of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from bushcraft.model.precision import add_product, operand, product

CHUNK_LOGITS = 1 << 22
"""Logits held at once: 16 MiB of fp32. Fewer make the products too narrow, more leave the last-level cache."""


class Vocabulary:
    """What a softmax over the vocabulary needs from all of its logits; here all of them are at hand.

    A part of a vocabulary overrides these, and gets from elsewhere what it lacks.
    """

    def log_sum_exp(self, lse_C: Tensor) -> Tensor:
        """Of all logits, from that of the logits at hand."""
        return lse_C

    def of_targets(self, logits_CV: Tensor, targets_C1: Tensor) -> Tensor:
        """Each target's logit, (C,)."""
        return logits_CV.gather(1, targets_C1)[:, 0]

    def add_at_targets(self, p_CV: Tensor, targets_C1: Tensor, values_C1: Tensor) -> Tensor:
        """p[i, target i] += value i, in place."""
        return p_CV.scatter_add_(1, targets_C1, values_C1)


WHOLE_VOCABULARY = Vocabulary()


def cross_entropy(
    h_ND: Tensor,
    unembedding_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    vocabulary: Vocabulary = WHOLE_VOCABULARY,
) -> tuple[Tensor, Tensor]:
    """Sums over the positions, weighted by `weights_N`: nats, and z_loss * logsumexp(logits)**2.

    `soft_cap` keeps logits within ±soft_cap (Gemma 2, arXiv:2408.00118, section 2). The z-loss keeps the softmax's
    denominator near 1 (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    The gradients of the two sums cannot be told apart: both must reach the loss with the same factor.
    """
    inputs = (h_ND, unembedding_VD, targets_N, weights_N, z_loss, soft_cap, vocabulary)
    if not torch.is_grad_enabled():
        return _losses(*inputs, with_gradients=False)[:2]
    return _CrossEntropy.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        nll, z_sum, d_h, d_w = _losses(*inputs, with_gradients=True)  # type: ignore[misc]
        ctx.save_for_backward(d_h, d_w)
        ctx.mark_non_differentiable(z_sum)
        return nll, z_sum

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor, _d_z: Tensor) -> tuple[Tensor | None, ...]:
        d_h, d_w = ctx.saved_tensors
        return d_h * d_nll, d_w * d_nll, None, None, None, None, None


def _losses(
    h_ND: Tensor,
    w_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    z_loss: float,
    soft_cap: float | None,
    vocabulary: Vocabulary,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nll, z_sum = h_ND.new_zeros((), dtype=torch.float32), h_ND.new_zeros((), dtype=torch.float32)
    d_h = torch.empty_like(h_ND) if with_gradients else h_ND.new_empty(0)
    d_w = torch.zeros_like(w_VD) if with_gradients else w_VD.new_empty(0)
    factor_VD = operand(w_VD)
    size = max(1, CHUNK_LOGITS // len(w_VD))
    for begin in range(0, len(h_ND), size):
        chunk = slice(begin, begin + size)
        h_CD, targets_C, weights_C = h_ND[chunk], targets_N[chunk, None], weights_N[chunk]
        logits_CV = soft_capped(product(operand(h_CD), factor_VD).float(), soft_cap)
        p_CV = logits_CV.softmax(1)
        # The largest probability is at least 1/V, so its logarithm is exact; a logsumexp would cost another exp each.
        part_C = logits_CV.amax(1) - p_CV.amax(1).log()
        lse_C = vocabulary.log_sum_exp(part_C)
        nll += weights_C @ (lse_C - vocabulary.of_targets(logits_CV, targets_C))
        z_sum += z_loss * (weights_C @ lse_C.square())
        if with_gradients:
            # d logits = weight * (softmax * scale - one-hot), scale = 1 + 2 * z_loss * lse. The factors of a row are
            # taken out of the products, which saves two passes over the logits.
            scale_C1 = (1 + 2 * z_loss * lse_C)[:, None]
            if lse_C is not part_C:
                p_CV.mul_((part_C - lse_C).exp_()[:, None])
            d_logits_CV = vocabulary.add_at_targets(p_CV, targets_C, -1 / scale_C1)
            if soft_cap is not None:
                d_logits_CV = d_logits_CV.mul_(1 - (logits_CV / soft_cap).square_())
            d_logits_CV = operand(d_logits_CV)
            scale_C1 = scale_C1 * weights_C[:, None]
            d_h[chunk] = product(d_logits_CV, factor_VD.T).mul_(scale_C1)
            add_product(d_w, d_logits_CV.T, operand(h_CD * scale_C1))
    return nll, z_sum, d_h, d_w


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), in place; the logits themselves without a cap."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
