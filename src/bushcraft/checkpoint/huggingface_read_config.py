"""A Hugging Face `config.json` as a `ModelConfig`; what ours cannot say is refused by the key that says it.

Keys and defaults are those of `transformers`: `LlamaConfig`, `Qwen3Config`, `T5GemmaConfig`.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bushcraft.errors import CheckpointError
from bushcraft.model.config import ModelConfig

Architecture = Literal["LlamaForCausalLM", "Qwen3ForCausalLM", "T5GemmaForConditionalGeneration"]
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
"""Theirs and ours: in all three architectures the MLP is gated."""
KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "mlp": "hidden_activation",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "attention_scale": "query_pre_attn_scalar",
    "attention_soft_cap": "attn_logit_softcapping",
}
"""What both stacks of an encoder-decoder have in common: our key and theirs."""
LLAMA: Architecture = "LlamaForCausalLM"
QWEN3: Architecture = "Qwen3ForCausalLM"
T5GEMMA: Architecture = "T5GemmaForConditionalGeneration"
_NEXT_STEP = "Bushcraft reads Llama, Qwen3 and T5Gemma as far as its [model] section can describe them"


@dataclass(frozen=True)
class PretrainedConfig:
    """What a `config.json` tells."""

    architecture: Architecture
    model: ModelConfig
    context: int
    """Positions that it was made for."""
    begin: int | None
    """The token in front of a text, if there is one."""
    ends: tuple[int, ...]
    """The tokens that end a text."""


@dataclass(frozen=True)
class Keys:
    """The values of a JSON object of a file, which are checked as they are read."""

    values: dict[str, Any]
    where: str
    """The file, as messages name it."""
    prefix: str = ""
    """In front of the keys, as messages name them."""

    def refused(self, key: str, why: str) -> CheckpointError:
        """The error about a key, with its value."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return CheckpointError(f"{self.where}: {self.prefix}{key} = {json.dumps(value)}: {why}", _NEXT_STEP)

    def must_be(self, key: str, wanted: object, default: object, why: str) -> None:
        """Errors: `CheckpointError` if the value is another one."""
        if self.values.get(key, default) != wanted:
            raise self.refused(key, why)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._given(key, default)
        if type(value) is not int:
            raise self.refused(key, "not a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._given(key, default)
        if type(value) not in (int, float):
            raise self.refused(key, "not a number")
        return float(value)

    def optional_number(self, key: str, default: float | None) -> float | None:
        return None if self.values.get(key, default) is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if type(value) is not bool:
            raise self.refused(key, "neither true nor false")
        return value

    def section(self, key: str) -> "Keys":
        """The object that is the value of a key."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.refused(key, "not an object")
        return Keys(value, self.where, f"{self.prefix}{key}.")

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where} has no {self.prefix}{key}", "Save the model again by save_pretrained")
        return value


def read_config(config: Keys, generation: Keys) -> PretrainedConfig:
    """What `config.json` and `generation_config.json` (empty if there is none) tell of a model.

    Whether an encoder shares the decoder's embedding is seen in its tensors only: here it does not.
    Errors: `CheckpointError` that names the key and its value.
    """
    match config.values.get("architectures"):
        case ["LlamaForCausalLM" | "Qwen3ForCausalLM" as architecture]:
            return _decoder(architecture, config, generation)
        case ["T5GemmaForConditionalGeneration"]:
            return _encoder_decoder(config, generation)
    raise config.refused("architectures", "an architecture that is not known")


def _decoder(architecture: Architecture, config: Keys, generation: Keys) -> PretrainedConfig:
    config.must_be("mlp_bias", False, False, "layers have no biases")
    is_qwen3 = architecture == QWEN3
    model = _stack(config, "hidden_act", "silu", 128 if is_qwen3 else None) | {
        "n_layers": config.integer("num_hidden_layers"),
        "tie_embeddings": config.flag("tie_word_embeddings", False),
        "qk_norm": is_qwen3,
    }
    if is_qwen3 and config.flag("use_sliding_window", False):
        model |= _window([config])
    return _checked(architecture, model, config, generation)


def _encoder_decoder(config: Keys, generation: Keys) -> PretrainedConfig:
    decoder, encoder = config.section("decoder"), config.section("encoder")
    common, of_encoder = _gemma_stack(decoder), _gemma_stack(encoder)
    for key, value in common.items():
        if of_encoder[key] != value:
            raise encoder.refused(KEYS[key], f"the decoder has {json.dumps(decoder.values.get(KEYS[key]))}")
    n_layers, n_encoder_layers = (stack.integer("num_hidden_layers") for stack in (decoder, encoder))
    model = common | {
        "kind": "encoder_decoder",
        "n_layers": n_layers,
        "n_encoder_layers": None if n_encoder_layers == n_layers else n_encoder_layers,
        "tie_embeddings": config.flag("tie_word_embeddings", True),
        "share_embeddings": False,
        "scale_embeddings": True,
        "post_norm": True,
        "qk_norm": False,
        "logit_soft_cap": decoder.optional_number("final_logit_softcapping", 30.0),
    }
    return _checked(T5GEMMA, model | _window([decoder, encoder]), decoder, generation)


def _gemma_stack(config: Keys) -> dict[str, Any]:
    """What encoder and decoder have to have in common."""
    stack = _stack(config, "hidden_activation", "gelu_pytorch_tanh", 256)
    scalar = config.number("query_pre_attn_scalar", 256)
    return stack | {
        "attention_scale": None if scalar == config.integer("head_dim", 256) else scalar**-0.5,
        "attention_soft_cap": config.optional_number("attn_logit_softcapping", 50.0),
    }


def _stack(config: Keys, activation: str, default_activation: str, default_head: int | None) -> dict[str, Any]:
    """What a stack of any architecture is described by; `default_head` is None where heads share the width."""
    config.must_be("attention_bias", False, False, "layers have no biases")
    found = config.values.get(activation, default_activation)
    if found not in ACTIVATIONS:
        raise config.refused(activation, f"not one of {', '.join(ACTIVATIONS)}")
    n_heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    head = config.integer("head_dim", default_head or width // n_heads)
    return {
        "vocab_size": config.integer("vocab_size"),
        "d_model": width,
        "n_heads": n_heads,
        "n_kv_heads": config.integer("num_key_value_heads", n_heads),
        "head_dim": None if head * n_heads == width else head,
        "d_ff": config.integer("intermediate_size"),
        "mlp": ACTIVATIONS[found],
        "rope_theta": _rope_theta(config),
        "norm_eps": config.number("rms_norm_eps", 1e-6),
    }


def _rope_theta(config: Keys) -> float:
    """The base of the wavelengths: `rope_parameters` since transformers 5, `rope_scaling` and `rope_theta` before."""
    key = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    rope = config.section(key) if config.values.get(key) else Keys({}, config.where)
    for name in ("rope_type", "type"):
        rope.must_be(name, "default", "default", "rotary positions are not scaled")
    for where in (rope, config):
        where.must_be("partial_rotary_factor", 1.0, 1.0, "rotary positions turn the whole of a head")
    return rope.number("rope_theta", config.number("rope_theta", 10_000.0))


def _window(stacks: list[Keys]) -> dict[str, int]:
    """`window` and `full_layer_every` of stacks that have them in common; nothing if no layer has a window."""
    slides = [_sliding_layers(stack) for stack in stacks]
    if not any(map(any, slides)):
        return {}
    possible = range(2, max(map(len, slides)) + 2)
    every = next((n for n in possible if all(slide == _pattern(n, len(slide)) for slide in slides)), None)
    if every is None:
        raise stacks[0].refused("layer_types", "only the last of every so many layers may see everything")
    widths = [stack.integer("sliding_window", None if "sliding_window" in stack.values else 4096) for stack in stacks]
    if len({*widths}) > 1:
        raise stacks[1].refused("sliding_window", f"the decoder has {widths[0]}")
    return {"window": widths[0], "full_layer_every": every}


def _pattern(every: int, n_layers: int) -> list[bool]:
    """Which layers have a window (`ModelConfig.layer_window`)."""
    return [(layer + 1) % every > 0 for layer in range(n_layers)]


def _sliding_layers(config: Keys) -> list[bool]:
    """Whether each layer has a window."""
    n_layers, given = config.integer("num_hidden_layers"), config.values.get("layer_types")
    if given is None and config.prefix:  # T5Gemma's default
        return [layer % 2 == 0 for layer in range(n_layers)]
    if given is None:  # Qwen3's default
        first = config.integer("max_window_layers", 28)
        return [layer >= first for layer in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or {*given} - {"sliding_attention", "full_attention"}:
        raise config.refused("layer_types", 'not "sliding_attention" or "full_attention" for each layer')
    return [kind == "sliding_attention" for kind in given]


def _checked(architecture: Architecture, model: dict[str, Any], config: Keys, generation: Keys) -> PretrainedConfig:
    try:
        checked = ModelConfig(**model)
    except ValidationError as error:
        problem = error.errors()[0]
        about = "".join(f"{KEYS.get(str(part), part)}: " for part in problem["loc"])
        told = problem["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{config.where}: {config.prefix}{about}{told}", _NEXT_STEP) from None
    begin = _tokens(config, generation, "bos_token_id")
    return PretrainedConfig(
        architecture=architecture,
        model=checked,
        context=config.integer("max_position_embeddings"),
        begin=begin[0] if begin else None,
        ends=_tokens(config, generation, "eos_token_id"),
    )


def _tokens(config: Keys, generation: Keys, key: str) -> tuple[int, ...]:
    """A token or a list of them, as the file about generation says, or else the one about the model."""
    keys = config if generation.values.get(key) is None else generation
    value = keys.values.get(key)
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in tokens):
        raise keys.refused(key, "not the id of a token")
    return tuple(tokens)


def with_shared_embeddings(config: PretrainedConfig) -> PretrainedConfig:
    """The same for an encoder whose embedding is the decoder's."""
    shared = config.model.model_copy(update={"share_embeddings": True})
    return dataclasses.replace(config, model=shared)
