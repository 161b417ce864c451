"""Muon: momentum whose singular values are made equal, for the matrices inside of a model.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale is that of Liu et al. 2025
(arXiv:2502.16982, section 2.2), with which AdamW's learning rate and weight decay serve both. This is
torch.optim.Muon, but for the arithmetic: that one multiplies in bf16 on any machine, and a CPU without bf16
units needs hundreds of times longer for it.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from bushcraft.model.precision import multiplies_bf16
from bushcraft.parallel.matrices import change_whole
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.weights import Weight

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: they carry singular values from [0.01, 1] to about [0.7, 1.2] in five steps."""
RMS_OF_ADAMW = 0.2
"""Root mean square of the updates that AdamW typically makes (Liu et al. 2025)."""
EPS = 1e-7


def muon_step(
    weights: Sequence[Weight],
    buffers: list[Tensor],
    mesh: Mesh | None,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """Update matrices (rows, columns) from their gradients, in place; `buffers` hold the averaged gradients.

    With Nesterov momentum: the update is of the average as it will be after another such gradient. A rank of `mesh`
    has parts of the matrices.
    """
    updates = []
    for weight, buffer in zip(weights, buffers, strict=True):
        gradient = weight.held.grad
        assert gradient is not None
        buffer.lerp_(gradient, 1 - momentum)
        updates.append(gradient.lerp(buffer, momentum))
    for weight, update in zip(weights, change_whole(weights, updates, mesh, orthogonalised), strict=True):
        weight.held.data.mul_(1 - learning_rate * weight_decay)
        weight.held.data.add_(update, alpha=-learning_rate * RMS_OF_ADAMW * max(weight.shape) ** 0.5)


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """U Vᵀ of each matrix U S Vᵀ, nearly: by Newton-Schulz iterations, those of one shape at a time."""
    found: list[Tensor] = [torch.empty(0)] * len(matrices)
    by_shape = defaultdict(list)
    for i, matrix in enumerate(matrices):
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        by_shape[tuple(wide.shape)].append((i, wide))
    for group in by_shape.values():
        batch_nRC = _newton_schulz(torch.stack([wide for _, wide in group]))
        for (i, _), wide in zip(group, batch_nRC, strict=True):
            found[i] = wide if matrices[i].shape == wide.shape else wide.T
    return found


def _newton_schulz(x_nRC: Tensor) -> Tensor:
    """Shapes: n matrices of R rows and C ≥ R columns."""
    a, b, c = COEFFICIENTS
    dtype = x_nRC.dtype
    x_nRC = x_nRC / x_nRC.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    if multiplies_bf16(x_nRC.device):
        x_nRC = x_nRC.bfloat16()
    for _ in range(STEPS):
        gram_nRR = x_nRC @ x_nRC.mT
        polynomial_nRR = torch.baddbmm(gram_nRR, gram_nRR, gram_nRR, beta=b, alpha=c)
        x_nRC = torch.baddbmm(x_nRC, polynomial_nRR, x_nRC, beta=a)
    return x_nRC.to(dtype)
