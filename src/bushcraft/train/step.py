"""What a step measures, and the losses of one batch of a whole model.

Shapes: B rows, S positions, D model width.
"""

from dataclasses import dataclass

from torch import Tensor

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


def losses(model: Model, batch: Batch, precision: str, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed nats of a batch, and its z-loss times the coefficient; weights applied."""
    batch = batch.to(model.unembedding_VD.device)
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
