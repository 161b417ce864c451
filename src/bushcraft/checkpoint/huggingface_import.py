"""A Hugging Face folder → a checkpoint of the store, which is used as one of a run is."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bushcraft
from bushcraft.checkpoint.code import save_code
from bushcraft.checkpoint.huggingface_files import json_file
from bushcraft.checkpoint.huggingface_read_config import T5GEMMA, Keys, PretrainedConfig, read_config
from bushcraft.checkpoint.huggingface_read_config import with_shared_embeddings as with_shared
from bushcraft.checkpoint.huggingface_safetensors import READABLE, Stored, read_tensor, stored_tensors
from bushcraft.checkpoint.huggingface_tensors import Converted, Place, places, tied_copies
from bushcraft.checkpoint.huggingface_tokenizer import read_chat_template, read_tokenizer
from bushcraft.checkpoint.manifest import CheckpointManifest, TokenizerEntry, read_manifest, write_manifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import PREFIX
from bushcraft.errors import CheckpointError
from bushcraft.store.depot import Depot

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DERIVED = ".rotary_emb.inv_freq"
"""What old files hold of what is computed."""
_ANOTHER_FOLDER = "Copy the folder again, or save the model again by save_pretrained"


def import_folder(
    depot: Depot, folder: Path, name: str, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[str, CheckpointManifest]:
    """Make the model of `folder` the newest checkpoint `name`, in fp32; the object name of its manifest, and that.

    `progress` hears how many tensors are read, of how many.
    Errors: `CheckpointError` that names the file, key or tensor that does not fit; `StoreError`.
    """
    _check_name(depot, name)
    config, stored = _described(folder)
    tokenizer = read_tokenizer(folder, config.model.vocab_size)
    wanted = places(config.model, config.architecture)
    _check_tensors(folder, wanted, stored, tied_copies(config.model, config.architecture))
    make = {PREFIX + place.ours: partial(_read_ours, place, stored) for place in wanted}
    manifest = CheckpointManifest(
        run=name,
        position=0,
        step=0,
        receipt="0" * 64,
        ledger=depot.put_bytes(_empty_ledger(name)),
        recipe=_recipe(config, name),
        datasets={},
        code=save_code(depot, Path(bushcraft.__file__).parent),
        optimizer={},
        tensors=save_tensors(depot, Converted(make, progress)),
        tokenizer=TokenizerEntry(depot.put_bytes(tokenizer), config.begin, config.ends, read_chat_template(folder)),
    )
    return write_manifest(depot, manifest), manifest


def _check_name(depot: Depot, name: str) -> None:
    """A run's name stays the run's: it would go on from what was imported."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} cannot be a name", "Use letters, digits, '.', '_' and '-'")
    newest = depot.latest(f"checkpoints/{name}")
    if newest is not None and read_manifest(depot, newest).tokenizer is None:
        raise CheckpointError(f"{name!r} is a run that was trained here", "Import under another name")


def _described(folder: Path) -> tuple[PretrainedConfig, dict[str, Stored]]:
    """What the folder says of its model, and its tensors."""
    path = folder / "config.json"
    generation = folder / "generation_config.json"
    about_generation = json_file(generation) if generation.is_file() else {}
    config = read_config(Keys(json_file(path), str(path)), Keys(about_generation, str(generation)))
    stored = stored_tensors(folder)
    if not config.ends:
        raise CheckpointError(f"{path} has no eos_token_id", "Write the id of the token that ends a text into it")
    return with_shared(config) if config.architecture == T5GEMMA and _shares(stored) else config, stored


def _shares(stored: dict[str, Stored]) -> bool:
    sides = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    if not all(side in stored for side in sides):
        return False
    encoder, decoder = (read_tensor(side, stored[side]) for side in sides)
    return torch.equal(encoder, decoder)


def _check_tensors(folder: Path, wanted: list[Place], stored: dict[str, Stored], copies: dict[str, str]) -> None:
    """Errors: `CheckpointError` that names the first tensor that is missing, left over, or something else."""
    by_name = {place.theirs: place for place in wanted}
    for copy, first in copies.items():
        if {copy, first} <= stored.keys() and not torch.equal(*(read_tensor(n, stored[n]) for n in (copy, first))):
            raise CheckpointError(
                f"{folder}: tensor {copy} is not {first}, though config.json has tie_word_embeddings = true",
                "Write false into config.json if the output has weights of its own",
            )
    extra = {name for name in stored.keys() - by_name.keys() - copies.keys() if not name.endswith(_DERIVED)}
    for names, what in ((by_name.keys() - stored.keys(), "misses"), (extra, "also has")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{folder} {what} the tensor {min(names)}{more}, by what config.json says", _ANOTHER_FOLDER
            )
    for name, place in by_name.items():
        if stored[name].shape != place.shape:
            raise CheckpointError(
                f"{folder}: tensor {name} is {list(stored[name].shape)}, config.json wants {list(place.shape)}",
                _ANOTHER_FOLDER,
            )
        if stored[name].dtype not in READABLE:
            raise CheckpointError(
                f"{folder}: tensor {name} is {stored[name].dtype}, not one of {', '.join(sorted(READABLE))}",
                "Save the model unquantised",
            )


def _read_ours(place: Place, stored: dict[str, Stored]) -> Tensor:
    tensor = read_tensor(place.theirs, stored[place.theirs])
    return tensor + place.offset if place.offset else tensor


def _empty_ledger(name: str) -> bytes:
    """The root of a ledger in which nothing has happened."""
    root = {"format": "bushcraft-ledger", "version": 1, "run": name, "events": 0, "segments": []}
    return json.dumps(root, sort_keys=True).encode()


def _recipe(config: PretrainedConfig, name: str) -> dict[str, Any]:
    """A recipe of that model, for what reads the recipes of checkpoints; it was not trained by it."""
    return {
        "run": {
            "name": name,
            "sequences": 1,
            "global_batch_size": 1,
            "microbatch_size": 1,
            "sequence_length": config.context,
        },
        "model": config.model.model_dump(mode="json"),
        "data": {"sources": {"imported": {"dataset": name}}},
        "objective": {"kind": "prefix" if config.architecture == T5GEMMA else "causal"},
        "optimizer": {"learning_rate": 1e-5},
    }
