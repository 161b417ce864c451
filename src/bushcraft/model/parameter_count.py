"""Parameters, counted without allocating one.

They are told apart by what each of them is multiplied with, which is what a step costs: the encoder's tokens, the
decoder's, or none (an embedding is read, a norm is too little to count).
"""

from dataclasses import dataclass

from bushcraft.model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model by the tokens that they work on."""

    encoder: int
    """In matrices that each token of the encoder is multiplied with, the decoder's cross-attention keys and values
    among them, which are made from the encoder's output."""
    decoder: int
    """In matrices that each token of the decoder is multiplied with, the output layer among them."""
    other: int
    """Norms, and embeddings that are not the output layer too."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.encoder + self.decoder + self.other


def parameter_count(config: ModelConfig) -> ParameterCount:
    """The parameters of `config`'s model."""
    d, vocabulary = config.d_model, config.vocab_size * config.d_model
    queries = 2 * d * config.head_width * config.n_heads  # and the projection out
    keys = 2 * d * config.head_width * config.n_kv_heads  # and values
    mlp = (2 if config.mlp == "relu2" else 3) * d * config.d_ff
    block = queries + keys + mlp
    has_encoder = config.kind == "encoder_decoder"
    cross_keys = config.n_layers * keys if has_encoder else 0
    cross_queries = config.n_layers * queries if has_encoder else 0
    embeddings = (0 if config.tie_embeddings else vocabulary) + (
        vocabulary if has_encoder and not config.share_embeddings else 0
    )
    return ParameterCount(
        encoder=config.encoder_layers * block + cross_keys,
        decoder=config.n_layers * block + cross_queries + vocabulary,
        other=embeddings + _norms(config),
    )


def _norms(config: ModelConfig) -> int:
    by_attention = 2 * config.head_width * config.qk_norm
    sublayer = config.d_model * (2 if config.post_norm else 1)
    n_attentions = config.encoder_layers + config.n_layers * (2 if config.kind == "encoder_decoder" else 1)
    n_mlps = config.encoder_layers + config.n_layers
    n_stacks = 2 if config.kind == "encoder_decoder" else 1
    return n_attentions * (by_attention + sublayer) + n_mlps * sublayer + n_stacks * config.d_model
