"""The decoder: tokens in, final hidden states out; what is done with them is the objective's affair.

Shapes: B rows, S positions, D model width, V vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bushcraft.model.attention import Mask, Segments, prefix_mask
from bushcraft.model.config import ModelConfig
from bushcraft.model.layers import Angles, Attention, RMSNorm, SwiGLU, rotary_angles


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BSD: Tensor, mask: Mask, angles: Angles) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), mask, angles)
        out: Tensor = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return out


class Embedding(nn.Module):
    """A row of D numbers for each token."""

    axes: ClassVar = {"weight": ("vocab", "embed")}

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return torch.nn.functional.embedding(tokens_BS, self.weight)


class Decoder(nn.Module):
    """A transformer over causal or prefix segments.

    `forward` gives normalised hidden states; `unembedding_VD` turns them into logits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.unembedding = None if config.tie_embeddings else Embedding(config.vocab_size, config.d_model)

    @property
    def unembedding_VD(self) -> Tensor:  # noqa: N802
        return (self.unembedding or self.embedding).weight

    def forward(self, tokens_BS: Tensor, segments: Segments) -> Tensor:
        """Hidden states (B, S, D) of packed rows; positions begin again in each segment."""
        positions_BS = segments.positions(*tokens_BS.shape)
        angles = rotary_angles(positions_BS, self.config.head_width, self.config.rope_theta)
        mask = prefix_mask(segments)
        torch._dynamo.maybe_mark_dynamic(mask.pieces, 0)
        x_BSD = self.embedding(tokens_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD, mask, angles)
        h_BSD: Tensor = self.norm(x_BSD)
        return h_BSD

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each block into one graph, whatever the segments; attention stays one opaque call inside."""
        for layer in self.layers:
            layer.compile(backend=backend, dynamic=False, fullgraph=True)
