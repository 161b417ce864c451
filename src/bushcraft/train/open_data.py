"""What a run reads: its data sets, checked against each other and the recipe, its loader and its objective."""

from bushcraft.data.loader import Loader, check_length, open_source, order_source
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.manifest import read_manifest as read_dataset
from bushcraft.data.order import Order
from bushcraft.errors import DataError, RecipeError
from bushcraft.ledger.events import Event
from bushcraft.objectives.objective import Objective
from bushcraft.store.workspace import Store
from bushcraft.train.objective import build_objective, objective_tokens
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import (
    RunRecord,
    objective_weights,
    order_changes,
)

Datasets = dict[str, tuple[str, DatasetManifest]]
"""Source name → object name of the manifest, manifest."""


def open_datasets(store: Store, recipe: Recipe, roots: dict[str, str] | None = None) -> Datasets:
    """The data set of each source, by `roots` where the run knows them; checked against each other and the model.

    In the order of `roots`, else of the recipe: the order of the first start is the order of the run for ever.
    Errors: `DataError` (missing, nothing in it, other tokenizers or separators, examples beside text or too long),
    `RecipeError` (vocabulary too small, an objective for the other kind of data).
    """
    found = {
        name: read_dataset(store.depot, roots[name] if roots else recipe.data.sources[name].dataset)
        for name in roots or recipe.data.sources
    }
    first = next(iter(found.values()))[1]
    for _, manifest in found.values():
        if manifest.fingerprint != first.fingerprint:
            raise DataError(
                f"data sets {first.name!r} and {manifest.name!r} have different tokenizers",
                f"Build {manifest.name!r} with the tokenizer of {first.name!r}: --tokenizer FILE",
            )
        if manifest.separator_id != first.separator_id:
            raise DataError(
                f"data sets {first.name!r} and {manifest.name!r} have different separators between documents: the "
                f"tokens {first.separator_id} and {manifest.separator_id}",
                f"Build {manifest.name!r} with the --separator of {first.name!r}",
            )
        if manifest.kind != first.kind:
            raise DataError(
                f"data set {first.name!r} holds {first.kind}, {manifest.name!r} {manifest.kind}: a run reads one kind",
                "Train on one after the other: run.start_from",
            )
        _check_kind(recipe, manifest)
        check_length(manifest, recipe.run.sequence_length)
        if manifest.splits["train"].n_tokens < 2:
            raise DataError(f"data set {manifest.name!r} has nothing to train on", "Build it from more text")
        if manifest.vocab_size > recipe.model.vocab_size:
            raise RecipeError(
                f"model.vocab_size = {recipe.model.vocab_size} is smaller than the vocabulary of the tokenizer of "
                f"data set {manifest.name!r}",
                f"Use at least {manifest.vocab_size}",
            )
    return found


def _check_kind(recipe: Recipe, manifest: DatasetManifest) -> None:
    """Errors: `RecipeError` where the objective cannot read the data."""
    kinds = recipe.objective.kinds
    if manifest.kind == "examples" and kinds != {"sft"}:
        others = " and ".join(f'"{kind}"' for kind in sorted(kinds - {"sft"}))
        raise RecipeError(
            f"data set {manifest.name!r} holds examples of prompts and answers, which objective {others} cannot read",
            'Use objective.kind = "sft"',
        )
    if manifest.kind == "text" and "sft" in kinds:
        raise RecipeError(
            f'objective "sft" needs prompts and answers, and data set {manifest.name!r} holds text',
            "Build one by `bushcraft data build NAME FILE.jsonl --instructions`",
        )


def open_loader(store: Store, recipe: Recipe, record: RunRecord, datasets: Datasets, events: list[Event]) -> Loader:
    """The loader of a run as its ledger says: the first recipe's order and every change since."""
    cache_bytes = recipe.data.cache_mib * 2**20 // len(datasets)
    sources = tuple(open_source(store.depot, name, m, cache_bytes) for name, (_, m) in datasets.items())
    length = record.recipe.run.sequence_length
    order = Order(
        tuple(order_source(source, length) for source in sources),
        record.recipe.run.seed,
        tuple(record.recipe.data.sources[source.name].weight for source in sources),
        record.recipe.run.global_batch_size,
        order_changes(events, [source.name for source in sources]),
        record.recipe.data.shuffle_window,
    )
    return Loader(sources, order, length)


def open_objective(
    store: Store, recipe: Recipe, record: RunRecord, dataset: DatasetManifest, events: list[Event]
) -> Objective:
    """The objective of a run as its ledger says."""
    special = objective_tokens(store.depot, dataset, recipe.objective)
    return build_objective(recipe, special, objective_weights(events, record.recipe))
