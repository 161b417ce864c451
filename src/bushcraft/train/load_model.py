"""A trained model, to be used: from a run's newest whole checkpoint, or from one manifest."""

import json

from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.checkpoint.newest import newest
from bushcraft.checkpoint.tensors import load_tensor
from bushcraft.data.manifest import read_manifest as read_dataset
from bushcraft.errors import CheckpointError
from bushcraft.model.transformer import Decoder
from bushcraft.store.workspace import Store
from bushcraft.train.recipe import Recipe
from bushcraft.train.sample import TextModel


def load_model(store: Store, run_or_checkpoint: str) -> tuple[TextModel, str]:
    """The model of a run, or of the checkpoint whose manifest is that object; and that object's name.

    Errors: `CheckpointError` (there is none), `CorruptObjectError`, `StoreError`.
    """
    if len(run_or_checkpoint) == 64:
        name, manifest = run_or_checkpoint, read_manifest(store.depot, run_or_checkpoint)
    else:
        found = newest(store.depot, run_or_checkpoint, lambda *_: None)
        if found is None:
            known = ", ".join(ref.removeprefix("checkpoints/") for ref in store.depot.refs("checkpoints")) or "none"
            raise CheckpointError(f"run {run_or_checkpoint!r} has no checkpoint", f"Runs that have: {known}")
        name, manifest = found
    recipe = Recipe.from_json(json.dumps(manifest.recipe), f"the recipe in checkpoint {name[:12]}")
    model = Decoder(recipe.model)
    for key, parameter in model.named_parameters():
        load_tensor(store.depot, f"model/{key}", manifest.tensors[f"model/{key}"], parameter.data)
    dataset = read_dataset(store.depot, next(iter(manifest.datasets.values())))[1]
    return TextModel.of(model, store.depot, dataset, recipe.objective.kind), name
