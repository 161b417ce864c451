"""A checkpoint → a Hugging Face folder that `transformers` and what is built on it can load."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bushcraft.checkpoint.huggingface_files import new_folder, write_json
from bushcraft.checkpoint.huggingface_read_config import T5GEMMA, Architecture
from bushcraft.checkpoint.huggingface_safetensors import write_tensors
from bushcraft.checkpoint.huggingface_tensors import Converted, Place, places
from bushcraft.checkpoint.huggingface_tokenizer import NO_PAD, TextSide, padding, write_tokenizer
from bushcraft.checkpoint.huggingface_write_config import architecture_of, write_config
from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.tensors import load_tensor
from bushcraft.checkpoint.weights import PREFIX
from bushcraft.model.config import ModelConfig
from bushcraft.store.depot import Depot


def export_folder(
    depot: Depot,
    manifest: CheckpointManifest,
    model: ModelConfig,
    text: TextSide,
    context: int,
    folder: Path,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Architecture:
    """Write the model of a checkpoint, made for `context` positions, to `folder`, whole or not at all.

    `progress` hears how many tensors are written, of how many.
    Errors: `CheckpointError` (no architecture can say what the model is, the folder is not empty or cannot be
    written), `CorruptObjectError`, `StoreError`.
    """
    architecture = architecture_of(model)
    pad = None
    if architecture == T5GEMMA:  # which hides padding by its id, and so must have one
        text, pad = padding(text, model.vocab_size)
    found = places(model, architecture)
    make = {place.theirs: partial(_read_theirs, depot, manifest, place) for place in found}
    dtype_name = str(dtype).removeprefix("torch.")
    with new_folder(folder) as new:
        write_json(new / "config.json", write_config(model, context, text.begin, text.ends, pad, dtype_name))
        write_json(new / "generation_config.json", _generation(architecture, text, pad))
        write_tokenizer(new, text, context, is_decoder=architecture != T5GEMMA)
        write_tensors(new, Converted(make, progress), {place.theirs: place.shape for place in found}, dtype)
    return architecture


def _read_theirs(depot: Depot, manifest: CheckpointManifest, place: Place) -> Tensor:
    entry = manifest.tensors[PREFIX + place.ours]
    tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
    load_tensor(depot, place.ours, entry, tensor)
    return tensor - place.offset if place.offset else tensor


def _generation(architecture: Architecture, text: TextSide, pad: int | None) -> dict[str, Any]:
    end = text.ends[0] if len(text.ends) == 1 else list(text.ends)
    found: dict[str, Any] = {
        "bos_token_id": text.begin,
        "eos_token_id": end,
        "pad_token_id": text.ends[0] if pad in (None, NO_PAD) else pad,
    }
    if architecture == T5GEMMA:
        found["decoder_start_token_id"] = text.begin
    return found
