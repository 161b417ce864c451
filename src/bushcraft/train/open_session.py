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
from bushcraft.data.loader import SourceData
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.workers import available_cores
from bushcraft.errors import BushcraftError, CheckpointError, RecipeError, RunError
from bushcraft.ledger.ledger import Ledger, restore_ledger
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import build_model
from bushcraft.objectives.objective import makes_long_rows
from bushcraft.store.workspace import Store
from bushcraft.train.calibrate import sequences_in
from bushcraft.train.heap import keep_freed_memory
from bushcraft.train.load_model import find_model
from bushcraft.train.objective import check_vocabulary, microbatches, objective_tokens
from bushcraft.train.open_data import Datasets, open_datasets, open_loader, open_objective
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.peak import fastest_precision
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import (
    RunRecord,
    change_data,
    changed_keys,
    present_recipe,
    read_record,
)
from bushcraft.train.session import Say, Session


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
    _check_name(store, name)
    if not ((store.runs / name).exists() or checkpoints(store.depot, name)):
        _check_first_weights(store, recipe, next(iter(datasets.values()))[1])
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


def _check_compiler(recipe: Recipe) -> None:
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if recipe.run.compile and not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise RecipeError(
            "run.compile needs a C++ compiler, and there is none", "Install g++, or --set run.compile=false"
        )


def _check_first_weights(store: Store, recipe: Recipe, dataset: DatasetManifest) -> None:
    """Errors: `CheckpointError` if there is no such checkpoint, or if its architecture or tokenizer is another one."""
    if recipe.run.start_from:
        saved = find_model(store, recipe.run.start_from)
        if saved.dataset.fingerprint != dataset.fingerprint:
            raise CheckpointError(
                f"data set {dataset.name!r} has another tokenizer than run.start_from = {recipe.run.start_from!r}",
                "Build it with the tokenizer of that model: `bushcraft data build --tokenizer FILE`",
            )
        with torch.device("meta"):
            model = build_model(recipe.model)
        check_names(saved.name, saved.manifest, model)


def _check_name(store: Store, name: str) -> None:
    """Errors: `RunError` if the name is that of an imported model, which has no history to go on with."""
    saved = checkpoints(store.depot, name)
    if saved and read_manifest(store.depot, saved[0][1]).tokenizer is not None:
        raise RunError(
            f"{name!r} is an imported model, not a run",
            f"Train under another name, and begin with its weights: --set run.start_from={name}",
        )


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
