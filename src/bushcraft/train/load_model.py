"""A trained model, to be used: from a run's newest whole checkpoint, from one manifest, or one that was imported."""

import json
from dataclasses import dataclass

from blake3 import blake3
from tokenizers import Tokenizer

from bushcraft.checkpoint.huggingface_tokenizer import TextSide, without_begin
from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.weights import find_checkpoint, load_weights
from bushcraft.data.chat_template import from_json
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.manifest import read_manifest as read_dataset
from bushcraft.data.tokenizer import token_itemsize
from bushcraft.model.transformer import build_model
from bushcraft.store.depot import Depot
from bushcraft.store.workspace import Store
from bushcraft.train.objective import objective_tokens
from bushcraft.train.recipe import Recipe
from bushcraft.train.sample import TextModel


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint, and what its parts mean."""

    name: str
    """Object name of the manifest."""
    manifest: CheckpointManifest
    recipe: Recipe
    dataset: DatasetManifest
    """What it was trained on first; of an imported model a data set without documents, with its tokenizer."""


def find_model(store: Store, run_or_checkpoint: str) -> SavedModel:
    """The newest whole checkpoint of a run, or of what was imported, or the one whose manifest is that object.

    Errors: `CheckpointError` (there is none), `CorruptObjectError`, `StoreError`.
    """
    name, manifest = find_checkpoint(store.depot, run_or_checkpoint)
    recipe = Recipe.from_json(json.dumps(manifest.recipe), f"the recipe in checkpoint {name[:12]}")
    if manifest.tokenizer is None:
        dataset = read_dataset(store.depot, next(iter(manifest.datasets.values())))[1]
    else:
        dataset = _without_documents(store.depot, manifest)
    return SavedModel(name, manifest, recipe, dataset)


def load_model(store: Store, run_or_checkpoint: str) -> tuple[TextModel, str]:
    """The model of `find_model`, and the object name of its manifest. Errors as there."""
    saved = find_model(store, run_or_checkpoint)
    model = build_model(saved.recipe.model)
    load_weights(store.depot, saved.name, saved.manifest, model)
    return TextModel.of(model, store.depot, saved.dataset, saved.recipe, saved.manifest.tokenizer), saved.name


def text_side(store: Store, saved: SavedModel) -> TextSide:
    """How the model reads and writes text, as an export tells it."""
    tokenizer = store.depot.read(saved.dataset.tokenizer)
    entry = saved.manifest.tokenizer
    if entry is not None:
        return TextSide(tokenizer, entry.begin, entry.ends, entry.chat_template)
    separator, own = saved.dataset.separator_id, Tokenizer.from_buffer(tokenizer).get_vocab(with_added_tokens=True)
    special = objective_tokens(store.depot, saved.dataset, saved.recipe.objective).names()
    names = sorted((token, name) for token, name in special.items() if name not in own)
    examples = saved.dataset.examples
    stored = examples.chat_template if examples else None
    template = from_json(store.depot.read(stored)).source if stored else None
    return TextSide(tokenizer, separator, (separator,), template, puts_begin=True, names=tuple(names))


def _without_documents(depot: Depot, manifest: CheckpointManifest) -> DatasetManifest:
    """An imported model's tokenizer as that of a data set. Where no token begins a text, one that ends a text does."""
    entry = manifest.tokenizer
    assert entry is not None
    tokenizer = depot.read(entry.object)
    vocabulary = Tokenizer.from_buffer(tokenizer).get_vocab(with_added_tokens=True)
    vocab_size = max(vocabulary.values()) + 1
    return DatasetManifest(
        name=manifest.run,
        tokenizer=entry.object,
        fingerprint=blake3(without_begin(tokenizer)).hexdigest(),
        vocab_size=vocab_size,
        separator_id=entry.ends[0] if entry.begin is None else entry.begin,
        itemsize=token_itemsize(vocab_size),
        splits={},
    )
