"""Floating-point operations of training, counted exactly: what an honest MFU divides by.

A multiply-add is two operations; the backward pass costs twice the forward. Attention counts the scores that
the mask lets through and no others. Norms, activations and the softmax are not counted.
"""

from bushcraft.model.attention import Segments, prefix_mask
from bushcraft.model.config import ModelConfig, matmul_parameters

BACKWARD = 2
"""A product's backward pass is two products of its size."""


def forward_flops(config: ModelConfig, segments: Segments) -> int:
    """Operations of one forward pass over a batch, the output layer included."""
    n_tokens = int(segments.length.sum())
    attention = 2 * 2 * prefix_mask(segments).n_scores() * config.n_heads * config.head_width * config.n_layers
    return 2 * matmul_parameters(config) * n_tokens + attention


def training_flops(config: ModelConfig, segments: Segments) -> int:
    """Operations of a forward and a backward pass over a batch."""
    return (1 + BACKWARD) * forward_flops(config, segments)
