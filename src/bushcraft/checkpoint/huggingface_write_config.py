"""A `ModelConfig` as a Hugging Face `config.json`: which architecture says all of it, and how."""

from typing import Any

from bushcraft.checkpoint.huggingface_read_config import ACTIVATIONS, LLAMA, QWEN3, T5GEMMA, Architecture
from bushcraft.errors import CheckpointError
from bushcraft.model.config import ModelConfig

MODEL_TYPES = {LLAMA: "llama", QWEN3: "qwen3", T5GEMMA: "t5gemma"}
_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
_DECODER_LACKS: dict[str, bool | None] = {
    "scale_embeddings": False,
    "post_norm": False,
    "attention_soft_cap": None,
    "logit_soft_cap": None,
}
"""What neither Llama nor Qwen3 has, by the value with which nothing is lacking."""
_T5GEMMA_NEEDS: dict[str, bool | None] = {"scale_embeddings": True, "post_norm": True, "qk_norm": False}


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture that can say what `model` is.

    Errors: `CheckpointError` that names the key of the [model] section that none of them can say.
    """
    if model.kind == "encoder_decoder":
        architecture, wanted = T5GEMMA, _T5GEMMA_NEEDS
    else:
        architecture, wanted = QWEN3 if model.qk_norm else LLAMA, _DECODER_LACKS
    for key, value in wanted.items():
        if getattr(model, key) != value:
            raise _cannot_say(architecture, model, key)
    if model.mlp not in _ACTIVATIONS:
        raise _cannot_say(architecture, model, "mlp")
    if architecture == T5GEMMA:
        _query_scalar(model)
    elif model.attention_scale not in (None, model.head_width**-0.5):
        raise _cannot_say(architecture, model, "attention_scale")
    if architecture == LLAMA and _has_windows(model):
        raise _cannot_say(architecture, model, "window")
    if architecture != QWEN3 and model.d_model % model.n_heads:
        raise _cannot_say(architecture, model, "n_heads")  # `transformers` wants it to divide the width, in vain
    return architecture


def write_config(
    model: ModelConfig, context: int, begin: int | None, ends: tuple[int, ...], pad: int | None, dtype: str
) -> dict[str, Any]:
    """The `config.json` of a model: made for `context` positions, with these special tokens. Errors as there."""
    architecture = architecture_of(model)
    end = ends[0] if len(ends) == 1 else list(ends) or None
    common = {
        "vocab_size": model.vocab_size,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
        "tie_word_embeddings": model.tie_embeddings,
    }
    if architecture == T5GEMMA:
        sides = {
            side: common | _gemma_stack(model, n_layers, context) | {"is_decoder": side == "decoder"}
            for side, n_layers in (("encoder", model.encoder_layers), ("decoder", model.n_layers))
        }
        details = {"is_encoder_decoder": True, "dropout_rate": 0.0, "classifier_dropout_rate": 0.0, **sides}
    else:
        details = _stack(model, model.n_layers, context) | {"hidden_act": _ACTIVATIONS[model.mlp]}
        if architecture == QWEN3:
            details |= _qwen_windows(model)
    names = {"architectures": [architecture], "model_type": MODEL_TYPES[architecture]}
    return {**names, "dtype": dtype, "torch_dtype": dtype, **common, **details}  # so called since and before 5.0


def _stack(model: ModelConfig, n_layers: int, context: int) -> dict[str, Any]:
    """What the stacks of all architectures are described by."""
    return {
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,  # where `transformers` before 5.0 looks
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def _gemma_stack(model: ModelConfig, n_layers: int, context: int) -> dict[str, Any]:
    return _stack(model, n_layers, context) | {
        "model_type": "t5_gemma_module",
        "hidden_activation": _ACTIVATIONS[model.mlp],
        "query_pre_attn_scalar": _query_scalar(model),
        "attn_logit_softcapping": model.attention_soft_cap,
        "final_logit_softcapping": model.logit_soft_cap,
        "layer_types": _layer_types(model, n_layers),
        "sliding_window": model.window or 4096,  # it must be a number, where no layer reads it too
    }


def _qwen_windows(model: ModelConfig) -> dict[str, Any]:
    slides = _has_windows(model)
    return {
        "use_sliding_window": slides,
        "sliding_window": model.window if slides else None,
        "layer_types": _layer_types(model, model.n_layers),
    }


def _layer_types(model: ModelConfig, n_layers: int) -> list[str]:
    return ["sliding_attention" if model.layer_window(n) else "full_attention" for n in range(n_layers)]


def _has_windows(model: ModelConfig) -> bool:
    return "sliding_attention" in _layer_types(model, model.n_layers)


def _query_scalar(model: ModelConfig) -> int:
    """T5Gemma's whole number s whose s**-0.5 is the factor of the scores."""
    scalar = model.head_width if model.attention_scale is None else max(1, round(model.attention_scale**-2))
    if model.attention_scale not in (None, scalar**-0.5):
        raise _cannot_say(T5GEMMA, model, "attention_scale")
    return scalar


def _cannot_say(architecture: Architecture, model: ModelConfig, key: str) -> CheckpointError:
    value = getattr(model, key)
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return CheckpointError(
        f"model.{key} = {shown} of this {model.kind.replace('_', '-')} has no place in {architecture}",
        "Llama, Qwen3 and T5Gemma can be exported; train with a [model] section that one of them can describe",
    )
