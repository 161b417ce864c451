"""A decoder of which one pipeline stage is left: a whole one whose other layers do nothing, so that names stay.

What moves between stages are the hidden states. Shapes: B rows, S positions, D model width.
"""

from typing import Any

from torch import Tensor, nn

from bushcraft.model.config import ModelConfig
from bushcraft.model.transformer import Decoder, Embedding
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.rules import stage_layers

COPY = "unembedding.weight"
"""How the last stage calls its copy of the embedding, which belongs to the first, where one matrix is both."""


def cut_layers(decoder: Decoder, config: ModelConfig, layout: Layout, stage: int) -> None:
    """Leave of a decoder, in place, what a stage computes. `config` is that of the decoder."""
    mine = stage_layers(config.n_layers, layout, stage)
    for layer in range(config.n_layers):
        if layer not in mine:
            decoder.layers[layer] = Passed()
    is_last = stage == layout.n_stages - 1
    if stage > 0:
        decoder.embedding = Received()  # type: ignore[assignment]
    if not is_last:
        decoder.norm = nn.Identity()  # type: ignore[assignment]
        decoder.unembedding = None
    elif config.tie_embeddings:
        decoder.unembedding = Embedding(config)


class Passed(nn.Module):
    """In place of a layer of another stage."""

    def forward(self, x_BSD: Tensor, *_: Any) -> Tensor:
        return x_BSD


class Received(nn.Module):
    """In place of the embedding: the hidden states that the stage before has sent, whatever the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.x_BSD: Tensor | None = None

    def forward(self, _tokens_BS: Tensor) -> Tensor:
        assert self.x_BSD is not None
        return self.x_BSD
