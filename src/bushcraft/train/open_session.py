"""Take hold of a run: begin it, or go on from its newest whole checkpoint.

All that can be refused is refused before anything is allocated.
"""

import dataclasses
import os
import shutil
from pathlib import Path

import torch

import bushcraft
from bushcraft.checkpoint.code import save_code
from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest
from bushcraft.checkpoint.newest import checkpoints, newest
from bushcraft.checkpoint.weights import check_names, find_checkpoint, load_weights
from bushcraft.data.loader import Loader, SourceData, check_length, open_source, order_source
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.manifest import read_manifest as read_dataset
from bushcraft.data.order import Order
from bushcraft.data.workers import available_cores
from bushcraft.errors import BushcraftError, DataError, RecipeError
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import Ledger, restore_ledger
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import build_model
from bushcraft.objectives.objective import Objective, makes_long_rows
from bushcraft.store.workspace import Store
from bushcraft.train.calibrate import sequences_in
from bushcraft.train.heap import keep_freed_memory
from bushcraft.train.objective import build_objective, check_vocabulary, microbatches, objective_tokens
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.peak import fastest_precision
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import (
    RunRecord,
    change_data,
    changed_keys,
    objective_weights,
    order_changes,
    present_recipe,
    read_record,
)
from bushcraft.train.session import Say, Session

Datasets = dict[str, tuple[str, DatasetManifest]]
"""Source name → object name of the manifest, manifest."""


def open_session(store: Store, recipe: Recipe, say: Say) -> Session:
    """The recipe's run, held by this process until `ledger.close`.

    Errors: `RecipeError`, `DataError`, `RunError`, `CheckpointError`, `StoreError`.
    """
    keep_freed_memory()
    name = recipe.run.name
    store.depot.remove_abandoned_files()
    _check_compiler(recipe)
    datasets = open_datasets(store, recipe)  # before there is a trace of a run that could never train
    check_vocabulary(recipe, objective_tokens(store.depot, next(iter(datasets.values()))[1], recipe.objective))
    _check_first_weights(store, recipe)
    ledger = Ledger.open(store.runs / name, name, store.depot, lambda: _restore_lost_ledger(store, name, say))
    try:
        ledger.clock.enter("init")
        if ledger.history:
            record = read_record(ledger.history, name)
            changed = changed_keys(present_recipe(ledger.history, name), recipe)
            datasets = open_datasets(store, recipe, record.datasets)
        else:
            record, changed = first_record(store, recipe, datasets), {}
            ledger.history.append(ledger.append("run", 0, durable=True, **record.to_data()))
        with ledger.clock.phase("load"):
            found = newest(store.depot, name, lambda bad, error: _pass_over(ledger, say, bad, error))
        position = found[1].position if found else 0
        if changed:
            ledger.history.append(ledger.append("change", position, durable=True, **change_data(recipe, changed)))
            say(f"from position {position} on: " + ", ".join(f"{k}: {a} → {b}" for k, (a, b) in changed.items()))
        return _build(store, ledger, record, recipe, datasets, found)
    except BaseException:
        ledger.close()
        raise


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


def _check_compiler(recipe: Recipe) -> None:
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if recipe.run.compile and not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise RecipeError(
            "run.compile needs a C++ compiler, and there is none", "Install g++, or --set run.compile=false"
        )


def _check_first_weights(store: Store, recipe: Recipe) -> None:
    """Errors: `CheckpointError` if there is no such checkpoint, or if it is of another architecture."""
    if recipe.run.start_from:
        with torch.device("meta"):
            model = build_model(recipe.model)
        check_names(*find_checkpoint(store.depot, recipe.run.start_from), model)


def first_record(store: Store, recipe: Recipe, datasets: Datasets) -> RunRecord:
    """Decide what the recipe leaves to the machine, once for the whole run."""
    threads = recipe.run.threads or available_cores()
    torch.set_num_threads(threads)
    precision = fastest_precision() if recipe.run.precision == "auto" else recipe.run.precision
    record = RunRecord(
        recipe=recipe,
        datasets={name: root for name, (root, _) in datasets.items()},
        sequences=recipe.run.planned_sequences() or 0,
        precision=precision,
        threads=threads,
        code=save_code(store.depot, Path(bushcraft.__file__).parent),
        start_from=find_checkpoint(store.depot, recipe.run.start_from)[0] if recipe.run.start_from else None,
    )
    if record.sequences:
        return record
    rows = open_loader(store, recipe, record, datasets, []).rows(0, recipe.run.global_batch_size)
    dataset = next(iter(datasets.values()))[1]
    objective = open_objective(store, recipe, record, dataset, [])
    batches = microbatches(recipe, objective, dataset.separator_id, rows, 0)
    return dataclasses.replace(record, sequences=sequences_in(recipe, precision, batches))


def open_objective(
    store: Store, recipe: Recipe, record: RunRecord, dataset: DatasetManifest, events: list[Event]
) -> Objective:
    """The objective of a run as its ledger says."""
    special = objective_tokens(store.depot, dataset, recipe.objective)
    return build_objective(recipe, special, objective_weights(events, record.recipe))


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


def _build(
    store: Store,
    ledger: Ledger,
    record: RunRecord,
    recipe: Recipe,
    datasets: Datasets,
    found: tuple[str, CheckpointManifest] | None,
) -> Session:
    torch.set_num_threads(record.threads)
    loader = open_loader(store, recipe, record, datasets, ledger.history)
    objective = open_objective(store, recipe, record, loader.sources[0].manifest, ledger.history)
    model = build_model(recipe.model)
    initialise(model, recipe.run.seed)
    if record.start_from and not found:
        load_weights(
            store.depot, record.start_from, read_manifest(store.depot, record.start_from), model, grow_vocabulary=True
        )
    if recipe.run.compile:
        model.compile_layers(varying_length=makes_long_rows(objective, recipe.model.kind))
    sources: tuple[SourceData, ...] = loader.sources
    optimizer = Optimizer(model, recipe.optimizer)
    session = Session(store, ledger, record, recipe, sources, loader, objective, model, optimizer)
    if found:
        with ledger.clock.phase("load"):
            session.restore(*found)
    ledger.append("start", session.position, durable=True, checkpoint=session.checkpoint, step=session.step)
    return session


def _restore_lost_ledger(store: Store, name: str, say: Say) -> None:
    """A run whose directory is gone has its history in its checkpoints."""
    for _, checkpoint in checkpoints(store.depot, name):
        try:
            restore_ledger(store.runs / name, store.depot, read_manifest(store.depot, checkpoint).ledger)
        except BushcraftError as error:
            say(f"the ledger in checkpoint {checkpoint[:12]} cannot be used: {error.message}")
        else:
            say(f"restored the ledger of run {name} from checkpoint {checkpoint[:12]}")
            return


def _pass_over(ledger: Ledger, say: Say, name: str, error: BushcraftError) -> None:
    ledger.append("checkpoint", 0, manifest=name, unusable=error.message)
    say(f"checkpoint {name[:12]} is passed over: {error.message}")
