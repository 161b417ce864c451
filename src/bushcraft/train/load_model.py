"""A trained model, to be used: from a run's newest whole checkpoint, or from one manifest."""

import json

from bushcraft.checkpoint.weights import find_checkpoint, load_weights
from bushcraft.data.manifest import read_manifest as read_dataset
from bushcraft.model.transformer import Decoder, build_model
from bushcraft.store.workspace import Store
from bushcraft.train.recipe import Recipe
from bushcraft.train.sample import TextModel


def load_model(store: Store, run_or_checkpoint: str) -> tuple[TextModel, str]:
    """The model of a run, or of the checkpoint whose manifest is that object; and that object's name.

    Errors: `CheckpointError` (there is none), `CorruptObjectError`, `StoreError`.
    """
    name, manifest = find_checkpoint(store.depot, run_or_checkpoint)
    recipe = Recipe.from_json(json.dumps(manifest.recipe), f"the recipe in checkpoint {name[:12]}")
    model = build_model(recipe.model)
    load_weights(store.depot, name, manifest, model)
    assert isinstance(model, Decoder)
    dataset = read_dataset(store.depot, next(iter(manifest.datasets.values())))[1]
    return TextModel.of(model, store.depot, dataset, recipe.objective.kind), name
