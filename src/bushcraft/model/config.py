"""The shape of a model, as data; what cannot work is refused before anything is allocated."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    vocab_size: int = Field(gt=0)
    """Rows of the embedding: at least as many as the tokenizer has tokens."""
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Blocks of attention and MLP."""
    n_heads: int = Field(gt=0)
    """Query heads."""
    n_kv_heads: int = Field(gt=0)
    """Key and value heads; each serves n_heads / n_kv_heads query heads."""
    head_dim: int | None = Field(None, gt=0)
    """Width of a head; d_model / n_heads if it is not given."""
    d_ff: int = Field(gt=0)
    """Width of the SwiGLU's hidden layer."""
    tie_embeddings: bool = True
    """Use one matrix for the embedding and the output."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary wavelengths (Su et al. 2021, arXiv:2104.09864)."""
    norm_eps: float = Field(1e-6, gt=0)
    """Floor under the root of RMSNorm."""
    qk_norm: bool = True
    """Normalise queries and keys, which keeps attention logits bounded (Dehghani et al. 2023, section 2.2)."""

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

    @property
    def head_width(self) -> int:
        """Width of a head, given or derived."""
        return self.head_dim or self.d_model // self.n_heads


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that each token is multiplied with: all matrices and the unembedding, not the embedding."""
    attention = 2 * config.d_model * config.head_width * (config.n_heads + config.n_kv_heads)
    mlp = 3 * config.d_model * config.d_ff
    return config.n_layers * (attention + mlp) + config.vocab_size * config.d_model


def parameter_count(config: ModelConfig) -> int:
    """All parameters, without allocating one."""
    norms = config.n_layers * (2 * config.d_model + 2 * config.head_width * config.qk_norm) + config.d_model
    untied = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    return matmul_parameters(config) + norms + untied


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
