"""The tensors of a model by the names that `transformers` gives them.

Matrices are the same in both: (out, in), and rotary pairs are (i, i + E/2) in both. T5Gemma's norms are kept as what is
added to 1.

Shapes: E head width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.checkpoint.huggingface_read_config import T5GEMMA, Architecture
from bushcraft.model.config import ModelConfig
from bushcraft.model.transformer import build_model

_ATTENTION = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
}
_MLP = {f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
_LAYER = {f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()} | _MLP
_DECODER_LAYER = _LAYER | {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_T5GEMMA_LAYER = (
    _LAYER
    | {f"cross.{ours}": f"cross_attn.{theirs}" for ours, theirs in _ATTENTION.items()}
    | {
        f"{ours}_{norm}": f"{when}_{theirs}_layernorm"
        for ours, theirs in (("attention", "self_attn"), ("cross", "cross_attn"), ("mlp", "feedforward"))
        for norm, when in (("norm", "pre"), ("post_norm", "post"))
    }
)
_WHOLE = {"embedding": "embed_tokens", "norm": "norm"}


@dataclass(frozen=True)
class Place:
    """One of our tensors, and what `transformers` has for it."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    offset: float
    """What is added to their numbers to give ours."""


def places(model: ModelConfig, architecture: Architecture) -> list[Place]:
    """Each tensor that the files of this architecture hold; one of ours may stand in two places."""
    with torch.device("meta"):
        parameters = {name: tuple(p.shape) for name, p in build_model(model).named_parameters()}
    found = [
        Place(name, _their_name(name, architecture), shape, _offset(architecture, shape))
        for name, shape in parameters.items()
    ]
    if architecture == T5GEMMA and model.share_embeddings:
        shape = parameters["decoder.embedding.weight"]
        found.append(Place("decoder.embedding.weight", "model.encoder.embed_tokens.weight", shape, 0.0))
    return found


def tied_copies(model: ModelConfig, architecture: Architecture) -> dict[str, str]:
    """What a file may hold a second time: the output of tied embeddings → where it stands first."""
    if not model.tie_embeddings:
        return {}
    if architecture == T5GEMMA:
        return {"lm_head.out_proj.weight": "model.decoder.embed_tokens.weight"}
    return {"lm_head.weight": "model.embed_tokens.weight"}


def _their_name(name: str, architecture: Architecture) -> str:
    if architecture != T5GEMMA:
        return "lm_head.weight" if name == "unembedding.weight" else f"model.{_in_stack(name, _DECODER_LAYER)}"
    if name == "decoder.unembedding.weight":
        return "lm_head.out_proj.weight"
    side, _, rest = name.partition(".")
    return f"model.{side}.{_in_stack(rest, _T5GEMMA_LAYER)}"


def _in_stack(name: str, of_layer: dict[str, str]) -> str:
    """`layers.3.attention.query.weight` → `layers.3.self_attn.q_proj.weight`."""
    part = name.removesuffix(".weight")
    if not part.startswith("layers."):
        return f"{_WHOLE[part]}.weight"
    _, number, inside = part.split(".", 2)
    return f"layers.{number}.{of_layer[inside]}.weight"


def _offset(architecture: Architecture, shape: tuple[int, ...]) -> float:
    return 1.0 if architecture == T5GEMMA and len(shape) == 1 else 0.0


class Converted(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, since a model may be larger than the memory."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]], progress: Callable[[int, int], None]) -> None:
        """`progress` hears how many were asked for so far, and how many there are."""
        self._make, self._progress = make, progress
        self._last: tuple[str, Tensor] | None = None
        self._n_made = 0

    def __getitem__(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = name, self._make[name]()
            self._n_made += 1
            self._progress(self._n_made, len(self))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)
