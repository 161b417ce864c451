"""The decoder and the encoder-decoder: tokens in, final hidden states out; what is done with them is the
objective's affair.

Shapes: B rows, S positions of the decoder, T positions of the encoder, D model width, V vocabulary.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from bushcraft.model.attention import Mask, Segments, bidirectional_mask, cross_mask, prefix_mask
from bushcraft.model.config import ModelConfig
from bushcraft.model.layers import MLP, Angles, Attention, CrossAttention, RMSNorm, rotary_angles
from bushcraft.model.packed import Packed


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after (Xiong et al. 2020, arXiv:2002.04745).

    A decoder's block that `crosses` attends to the encoder in between. With `post_norm` what is added is normalised
    too.
    """

    def __init__(self, config: ModelConfig, crosses: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.attention_post_norm = _norms(config)
        self.attention = Attention(config)
        if crosses:
            self.cross_norm, self.cross_post_norm = _norms(config)
        self.cross = CrossAttention(config) if crosses else None
        self.mlp_norm, self.mlp_post_norm = _norms(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BSD: Tensor,
        mask: Mask,
        angles: Angles,
        encoded_BTD: Tensor | None = None,
        cross_mask: Mask | None = None,
    ) -> Tensor:
        x_BSD = x_BSD + self.attention_post_norm(self.attention(self.attention_norm(x_BSD), mask, angles))
        if self.cross is not None:
            x_BSD = x_BSD + self.cross_post_norm(self.cross(self.cross_norm(x_BSD), encoded_BTD, cross_mask))
        return self.add_mlp(x_BSD)

    def add_mlp(self, x_BSD: Tensor) -> Tensor:
        """The block's second half."""
        out: Tensor = x_BSD + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BSD)))
        return out


def _norms(config: ModelConfig) -> tuple[RMSNorm, nn.Module]:
    """The norms before and after a layer."""
    before = RMSNorm(config.d_model, config.norm_eps)
    return before, RMSNorm(config.d_model, config.norm_eps) if config.post_norm else nn.Identity()


class Embedding(nn.Module):
    """A row of D numbers for each token, times `scale`."""

    axes: ClassVar = {"weight": ("vocab", "embed")}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = config.embedding_scale
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = torch.nn.functional.embedding(tokens_BS, self.weight)
        return x_BSD if self.scale == 1 else x_BSD * self.scale


class Decoder(nn.Module):
    """A transformer over causal or prefix segments; with `crosses` the decoder of an encoder-decoder.

    `forward` gives normalised hidden states; `unembedding_VD` turns them into logits.
    """

    def __init__(self, config: ModelConfig, crosses: bool = False) -> None:
        super().__init__()
        self.config = config
        self.varying_length = False
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Block(config, crosses) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.unembedding = None if config.tie_embeddings else Embedding(config)

    @property
    def unembedding_VD(self) -> Tensor:  # noqa: N802
        return (self.unembedding or self.embedding).weight

    def forward(
        self,
        tokens_BS: Tensor,
        segments: Segments,
        encoder: Packed | None = None,
        encoded_BTD: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D) of packed rows; positions begin again in each segment.

        A decoder that crosses takes what the encoder read, and its hidden states.
        """
        across = _dynamic(cross_mask(segments, encoder.segments)) if encoder else None
        masks = _masks(prefix_mask(segments), self.config, self.config.window)
        angles = _angles(segments, tokens_BS, self.config)
        x_BSD = self.embedding(tokens_BS)
        for layer, mask in zip(self.layers, masks, strict=False):
            if self.varying_length:
                _mark_length(x_BSD, *angles, encoded_BTD)
            x_BSD = layer(x_BSD, mask, angles, encoded_BTD, across)
        h_BSD: Tensor = self.norm(x_BSD)
        return h_BSD

    def compile_layers(self, backend: str = "inductor", varying_length: bool = False) -> None:
        """Compile each block into one graph, whatever the segments; attention stays one opaque call inside.

        With `varying_length` the one graph serves rows of any length; without it rows are to have one.
        """
        self.varying_length = varying_length
        _compile(self.layers, backend)


class Encoder(nn.Module):
    """A transformer that reads each segment both ways."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.varying_length = False
        self.embedding = None if config.share_embeddings else Embedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.encoder_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, packed: Packed, shared: Embedding) -> Tensor:
        """Hidden states (B, T, D); tokens are embedded by `shared` where the encoder has no embedding."""
        window = None if self.config.window is None else self.config.window + 1  # so many on either side, and itself
        masks = _masks(bidirectional_mask(packed.segments), self.config, window)
        angles = _angles(packed.segments, packed.tokens, self.config)
        x_BTD = (self.embedding or shared)(packed.tokens)
        for layer, mask in zip(self.layers, masks, strict=False):
            if self.varying_length:
                _mark_length(x_BTD, *angles)
            x_BTD = layer(x_BTD, mask, angles)
        h_BTD: Tensor = self.norm(x_BTD)
        return h_BTD


class EncoderDecoder(nn.Module):
    """A decoder whose n-th segment attends to the n-th segment of an encoder (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, crosses=True)

    @property
    def unembedding_VD(self) -> Tensor:  # noqa: N802
        return self.decoder.unembedding_VD

    def encode(self, packed: Packed) -> Tensor:
        """The encoder's hidden states, (B, T, D)."""
        encoded_BTD: Tensor = self.encoder(packed, self.decoder.embedding)
        return encoded_BTD

    def forward(self, tokens_BS: Tensor, segments: Segments, encoder: Packed | None) -> Tensor:
        """Hidden states (B, S, D) of the decoder."""
        assert encoder is not None, "an encoder-decoder reads two sides"
        h_BSD: Tensor = self.decoder(tokens_BS, segments, encoder, self.encode(encoder))
        return h_BSD

    def compile_layers(self, backend: str = "inductor", varying_length: bool = False) -> None:
        """As `Decoder.compile_layers`, of both stacks."""
        self.encoder.varying_length = varying_length
        _compile(self.encoder.layers, backend)
        self.decoder.compile_layers(backend, varying_length)


Model = Decoder | EncoderDecoder


def build_model(config: ModelConfig) -> Model:
    """The model of that shape; its parameters are yet to be filled."""
    return Decoder(config) if config.kind == "decoder" else EncoderDecoder(config)


def _masks(whole: Mask, config: ModelConfig, window: int | None) -> list[Mask]:
    """The mask of each layer that a stack may have."""
    windowed = _dynamic(dataclasses.replace(whole, window=window))
    whole = _dynamic(whole)
    n_layers = max(config.n_layers, config.encoder_layers)
    return [whole if config.layer_window(layer) is None else windowed for layer in range(n_layers)]


def _dynamic(mask: Mask) -> Mask:
    """How many pieces there are differs from batch to batch."""
    torch._dynamo.maybe_mark_dynamic(mask.pieces, 0)
    return mask


def _mark_length(*inputs: Tensor | None) -> None:
    """Tell the compiler that positions differ in number from batch to batch."""
    for x in inputs:
        if x is not None:
            torch._dynamo.maybe_mark_dynamic(x, 1)


def _angles(segments: Segments, tokens_BS: Tensor, config: ModelConfig) -> Angles:
    positions_BS = segments.positions(*tokens_BS.shape).to(tokens_BS.device)
    return rotary_angles(positions_BS, config.head_width, config.rope_theta)


def _compile(layers: nn.ModuleList, backend: str) -> None:
    for layer in layers:
        layer.compile(backend=backend, dynamic=False, fullgraph=True)
