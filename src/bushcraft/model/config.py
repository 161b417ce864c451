"""The shape of a model, as data; what cannot work is refused before anything is allocated."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A transformer: RMSNorm, rotary positions, grouped-query attention, a gated MLP."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    kind: Literal["decoder", "encoder_decoder"] = "decoder"
    """"decoder": one stack, causal or prefix. "encoder_decoder": an encoder reads both ways, and a decoder attends to
    it (Vaswani et al. 2017, arXiv:1706.03762)."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding: at least as many as the tokenizer and the objective have tokens."""
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Blocks of attention and MLP, in the decoder."""
    n_encoder_layers: int | None = Field(None, gt=0)
    """Blocks of an encoder-decoder's encoder; as many as the decoder has if it is not given."""
    n_heads: int = Field(gt=0)
    """Query heads."""
    n_kv_heads: int = Field(gt=0)
    """Key and value heads; each serves n_heads / n_kv_heads query heads."""
    head_dim: int | None = Field(None, gt=0)
    """Width of a head; d_model / n_heads if it is not given."""
    d_ff: int = Field(gt=0)
    """Width of the MLP's hidden layer."""
    mlp: Literal["swiglu", "geglu", "relu2"] = "swiglu"
    """Gated by silu or by gelu (Shazeer 2020, arXiv:2002.05202), or relu squared without a gate (So et al. 2021,
    arXiv:2109.08668)."""
    tie_embeddings: bool = True
    """Use one matrix for the embedding and the output."""
    share_embeddings: bool = True
    """Use the decoder's embedding in the encoder too."""
    scale_embeddings: bool = False
    """Multiply embeddings by √d_model where they are read, as T5Gemma does."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary wavelengths (Su et al. 2021, arXiv:2104.09864)."""
    norm_eps: float = Field(1e-6, gt=0)
    """Floor under the root of RMSNorm."""
    post_norm: bool = False
    """Normalise what a layer adds to the residual stream too (Gemma 2, arXiv:2408.00118, section 2)."""
    qk_norm: bool = True
    """Normalise queries and keys, which keeps attention logits bounded (Dehghani et al. 2023, section 2.2)."""
    attention_scale: float | None = Field(None, gt=0)
    """Factor of queries times keys; 1 / √(width of a head) if it is not given."""
    attention_soft_cap: float | None = Field(None, gt=0)
    """Keep attention scores s within ±cap, as cap × tanh(s / cap) (Gemma 2, section 2)."""
    logit_soft_cap: float | None = Field(None, gt=0)
    """Keep the output's logits within ±cap in the same way."""
    window: int | None = Field(None, gt=0)
    """Tokens that a windowed layer sees, its own included; in an encoder so many on either side. Not given: all."""
    full_layer_every: int = Field(2, gt=0)
    """Of so many layers the last sees everything, where there is a window (Gemma 2: 2, Gemma 3: 6)."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.n_kv_heads = {self.n_kv_heads} does not divide model.n_heads = {self.n_heads}: "
                f"use {_listed(_divisors(self.n_heads))}"
            )
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"model.n_heads = {self.n_heads} does not divide model.d_model = {self.d_model}: "
                f"use {_listed(_divisors(self.d_model))}, or give model.head_dim"
            )
        if self.head_width % 2:
            raise ValueError(
                f"a head is {self.head_width} wide, which rotary positions cannot halve: "
                f"use model.head_dim = {self.head_width - 1 or 2} or {self.head_width + 1}"
            )
        return self

    @model_validator(mode="after")
    def _encoder_is_wanted(self) -> Self:
        if self.n_encoder_layers is not None and self.kind == "decoder":
            raise ValueError(
                f"model.n_encoder_layers = {self.n_encoder_layers} is given, but a decoder has no encoder: "
                'use model.kind = "encoder_decoder"'
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of a head, given or derived."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder; 0 in a decoder."""
        return 0 if self.kind == "decoder" else self.n_encoder_layers or self.n_layers

    @property
    def embedding_scale(self) -> float:
        """Factor of embeddings where they are read."""
        return self.d_model**0.5 if self.scale_embeddings else 1.0

    def layer_window(self, layer: int) -> int | None:
        """The window of a layer of the decoder or the encoder; None where it sees everything."""
        return self.window if (layer + 1) % self.full_layer_every else None


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
