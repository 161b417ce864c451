"""Small models, and their checkpoints and folders, that the tests of Hugging Face folders share."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bushcraft.checkpoint.huggingface_export import export_folder
from bushcraft.checkpoint.huggingface_tokenizer import TextSide
from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.manifest import write_manifest as write_checkpoint
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import model_tensors
from bushcraft.data.manifest import DatasetManifest, write_manifest
from bushcraft.data.tokenizer_training import train_tokenizer
from bushcraft.model.config import ModelConfig
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import build_model
from bushcraft.store.local import LocalDepot
from bushcraft.store.workspace import Store

VOCABULARY = 300
DECODER = {"vocab_size": VOCABULARY, "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_ff": 12}
T5GEMMA = DECODER | {
    "kind": "encoder_decoder",
    "qk_norm": False,
    "post_norm": True,
    "scale_embeddings": True,
    "mlp": "geglu",
}
SHAPES = {
    "llama": DECODER | {"qk_norm": False, "tie_embeddings": False},
    "qwen3": DECODER | {"window": 3},
    "t5gemma": T5GEMMA | {"n_encoder_layers": 1, "tie_embeddings": False, "share_embeddings": False, "window": 3},
    "t5gemma, one embedding": T5GEMMA,
}


def tokenizer() -> bytes:
    return train_tokenizer(["a text of some words, and some more words of a text"], 270).json


def save(depot: LocalDepot, **values: Any) -> tuple[CheckpointManifest, ModelConfig]:
    """A checkpoint of a random model, norms included."""
    config = ModelConfig(**values)
    model = build_model(config)
    initialise(model, 1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))
    entries = save_tensors(depot, model_tensors(model))
    return CheckpointManifest("r", 0, 0, "", "", {}, {}, "", {}, entries), config


def export(depot: LocalDepot, folder: Path, dtype: torch.dtype = torch.float32, **values: Any) -> CheckpointManifest:
    manifest, config = save(depot, **values)
    export_folder(depot, manifest, config, TextSide(tokenizer(), 0, (0,), puts_begin=True), 64, folder, dtype)
    return manifest


def config_of(manifest: CheckpointManifest) -> ModelConfig:
    return ModelConfig.model_validate_json(json.dumps(manifest.recipe["model"]))


def change(path: Path, **values: Any) -> None:
    """Other values of a JSON file's keys; `a__b` is the key b in the object a."""
    document = json.loads(path.read_text())
    for key, value in values.items():
        *outer, last = key.split("__")
        inside = document
        for name in outer:
            inside = inside[name]
        inside[last] = value
    path.write_text(json.dumps(document))


def run_of(store: Store, model: dict[str, Any], **objective: Any) -> CheckpointManifest:
    """A checkpoint of a run `trained`, as training leaves one."""
    depot = store.depot
    manifest, config = save(depot, **model)
    fingerprint = train_tokenizer(["a text of some words, and some more words of a text"], 270).fingerprint
    largest = max(Tokenizer.from_buffer(tokenizer()).get_vocab().values())
    dataset = DatasetManifest("d", depot.put_bytes(tokenizer()), fingerprint, largest + 1, 0, 2, {})
    recipe = {
        "run": {
            "name": "trained",
            "sequences": 8,
            "global_batch_size": 8,
            "microbatch_size": 8,
            "sequence_length": 48,
        },
        "model": config.model_dump(mode="json"),
        "data": {"sources": {"d": {"dataset": "d"}}},
        "objective": {"kind": "causal", **objective},
        "optimizer": {"learning_rate": 1e-3},
    }
    ledger, code = depot.put_bytes(b"ledger"), depot.put_bytes(b"code")
    trained = dataclasses.replace(
        manifest, run="trained", recipe=recipe, datasets={"d": write_manifest(depot, dataset)}, ledger=ledger, code=code
    )
    write_checkpoint(depot, trained)
    return trained
