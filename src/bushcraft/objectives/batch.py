"""The batch that a training step takes: fixed shapes, so that compiled code never recompiles.

Shapes: B rows, S positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.model.attention import Segments
from bushcraft.model.packed import Packed


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; of an encoder-decoder model the decoder's side."""

    tokens: Tensor
    """(B, S) int64, the inputs."""
    targets: Tensor
    """(B, S) int64, what each position is to predict."""
    loss_weights: Tensor
    """(B, S) float32; 0 where there is nothing to predict."""
    segments: Segments
    """The pieces of documents in each row; attention stays inside of them."""
    encoder: Packed | None = None
    """What the encoder reads, in an encoder-decoder batch: its n-th segment belongs to the n-th of the above. The two
    sides may have different shapes."""

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors there; segments stay on the CPU, where masks are made of them."""
        encoder = self.encoder and Packed(self.encoder.tokens.to(device), self.encoder.segments)
        tokens, targets, weights = (x.to(device) for x in (self.tokens, self.targets, self.loss_weights))
        return Batch(tokens, targets, weights, self.segments, encoder)
