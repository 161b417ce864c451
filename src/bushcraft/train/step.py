"""One optimizer step: gradients of a global batch in microbatches, clipped, applied.

The loss is the mean over the real targets of the whole global batch, so that its microbatches count by what
they hold. Shapes: N = B × S positions, D model width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bushcraft.model.cross_entropy import cross_entropy
from bushcraft.model.precision import compute_precision
from bushcraft.model.transformer import Model
from bushcraft.objectives.batch import Batch


@dataclass(frozen=True)
class StepResult:
    """What a step measured."""

    loss: float
    """Nats a target, without the z-loss."""
    z_loss: float
    grad_norm: float
    """Before clipping."""


def gradients(
    model: Model, batches: Iterable[Batch], n_targets: float, precision: str, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of the mean loss over `n_targets`; (loss, z-loss), each of them a mean."""
    loss, z = torch.zeros(()), torch.zeros(())
    for batch in batches:
        nll, z_term = losses(model, batch, precision, z_loss)
        ((nll + z_term) / n_targets).backward()  # type: ignore[no-untyped-call]
        loss += nll.detach()
        z += z_term.detach()
    return loss / n_targets, z / n_targets


def losses(model: Model, batch: Batch, precision: str, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed nats of a batch, and its z-loss times the coefficient; weights applied."""
    with compute_precision(precision):
        h_BSD = model(batch.tokens, batch.segments, batch.encoder)
        return cross_entropy(
            h_BSD.flatten(0, 1),
            model.unembedding_VD,
            batch.targets.flatten(),
            batch.loss_weights.flatten(),
            z_loss,
            model.config.logit_soft_cap,
        )


def clip(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm` (0: leave them); the norm before."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
