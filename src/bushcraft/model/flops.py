"""Floating-point operations of training, counted exactly: what an honest MFU divides by.

A multiply-add is two operations; the backward pass costs twice the forward. Attention counts the scores that
the mask lets through and no others. Norms, activations and the softmax are not counted.
"""

import dataclasses

from bushcraft.model.attention import Mask, Segments, bidirectional_mask, cross_mask, prefix_mask
from bushcraft.model.config import ModelConfig
from bushcraft.model.parameter_count import parameter_count

BACKWARD = 2
"""A product's backward pass is two products of its size."""


def forward_flops(config: ModelConfig, segments: Segments, encoder: Segments | None = None) -> int:
    """Operations of one forward pass over a batch, the output layer included; `encoder`: its side's segments."""
    count = parameter_count(config)
    scores = _scores(prefix_mask(segments), config, config.n_layers, config.window)
    products = count.decoder * int(segments.length.sum())
    if encoder is not None:
        window = None if config.window is None else config.window + 1
        scores += _scores(bidirectional_mask(encoder), config, config.encoder_layers, window)
        scores += config.n_layers * cross_mask(segments, encoder).n_scores()
        products += count.encoder * int(encoder.length.sum())
    attention = 2 * scores * config.n_heads * config.head_width  # queries times keys, probabilities times values
    return 2 * (products + attention)


def training_flops(config: ModelConfig, segments: Segments, encoder: Segments | None = None) -> int:
    """Operations of a forward and a backward pass over a batch."""
    return (1 + BACKWARD) * forward_flops(config, segments, encoder)


def _scores(mask: Mask, config: ModelConfig, n_layers: int, window: int | None) -> int:
    """Scores that a stack of layers makes of the mask, each in its own window."""
    n_windowed = sum(config.layer_window(layer) is not None for layer in range(n_layers))
    whole = (n_layers - n_windowed) * mask.n_scores()
    return whole + n_windowed * dataclasses.replace(mask, window=window).n_scores() if n_windowed else whole
