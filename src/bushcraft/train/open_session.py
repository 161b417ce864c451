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
from bushcraft.checkpoint.newest import checkpoints, newest, verify
from bushcraft.checkpoint.saver import Saver, wait_for_saves
from bushcraft.checkpoint.weights import check_names, find_checkpoint, load_weights
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.workers import available_cores
from bushcraft.errors import BushcraftError, CheckpointError, RecipeError, RunError
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import Ledger, restore_ledger
from bushcraft.ledger.silent import SilentLedger
from bushcraft.model.transformer import build_model
from bushcraft.objectives.objective import makes_long_rows
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.parallel_model import ParallelModel
from bushcraft.parallel.ranks import Ranks, rank_device
from bushcraft.parallel.world import World
from bushcraft.store.depot import Depot
from bushcraft.store.workspace import Store
from bushcraft.train.calibrate import sequences_in
from bushcraft.train.heap import keep_freed_memory
from bushcraft.train.layout import checked_layout
from bushcraft.train.load_model import find_model
from bushcraft.train.memory_tier import with_memory
from bushcraft.train.objective import check_vocabulary, microbatches, objective_tokens
from bushcraft.train.open_data import Datasets, open_datasets, open_loader, open_objective
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.peak import fastest_precision
from bushcraft.train.recipe import Recipe
from bushcraft.train.ring import Nodes, find_nodes, open_ring
from bushcraft.train.run_record import (
    RunRecord,
    change_data,
    changed_keys,
    present_recipe,
    read_record,
)
from bushcraft.train.saving import Saved, Saving
from bushcraft.train.session import Say, Session
from bushcraft.train.step_data import StepReader


def open_session(store: Store, recipe: Recipe, say: Say, world: World | None = None) -> Session:
    """The recipe's run, held by this process until `close`; of a `world` by its first rank for all of them.

    Errors: `RecipeError`, `DataError`, `RunError`, `CheckpointError`, `StoreError`.
    """
    keep_freed_memory()
    ranks = Ranks(world)
    layout = ranks.first(lambda: checked_layout(recipe, ranks.world_size))
    _check_compiler(recipe)
    held: list[Ledger] = []
    try:
        record, history = ranks.first(lambda: _take_hold(store, recipe, say, held, ranks))
        ledger = held[0] if held else SilentLedger(recipe.run.name, history)
        ledger.clock.enter("init")
        nodes = find_nodes(world, ranks)
        with with_memory(store, recipe.run.name, nodes, ranks) as depot:
            with ledger.clock.phase("load"):
                found = _find_checkpoint(depot, recipe.run.name, ledger, say, ranks)
            _note_changes(ledger, recipe, found[1].position if found else 0, say)
            return _build(store, depot, ledger, ranks, nodes, layout, record, recipe, found, say)
    except BaseException:
        for ledger in held:
            ledger.close()
        raise


def _take_hold(
    store: Store, recipe: Recipe, say: Say, held: list[Ledger], ranks: Ranks
) -> tuple[RunRecord, list[Event]]:
    """What the run was started with, and its history; `held` is given its ledger."""
    name = recipe.run.name
    store.depot.remove_abandoned_files()
    datasets = open_datasets(store, recipe)  # before there is a trace of a run that could never train
    check_vocabulary(recipe, objective_tokens(store.depot, next(iter(datasets.values()))[1], recipe.objective))
    _check_name(store, name)
    if not ((store.runs / name).exists() or checkpoints(store.depot, name)):
        _check_first_weights(store, recipe, next(iter(datasets.values()))[1])
    ledger = Ledger.open(store.runs / name, name, store.depot, lambda: _restore_lost_ledger(store, name, say))
    held.append(ledger)
    ledger.clock.enter("init")
    wait_for_saves(store.runs / name, say)
    if ledger.history:
        record = read_record(ledger.history, name)
        changed_keys(present_recipe(ledger.history, name), recipe)  # refused before anything is read
    else:
        record = first_record(store, recipe, datasets, ranks)
        ledger.history.append(ledger.append("run", 0, durable=True, **record.to_data()))
    return record, ledger.history


def _note_changes(ledger: Ledger, recipe: Recipe, position: int, say: Say) -> None:
    changed = changed_keys(present_recipe(ledger.history, recipe.run.name), recipe)
    if changed:
        change = ledger.append("change", position, durable=True, **change_data(recipe, changed))
        ledger.history.append(change)
        say(f"from position {position} on: " + ", ".join(f"{k}: {a} → {b}" for k, (a, b) in changed.items()))


def _find_checkpoint(
    depot: Depot, name: str, ledger: Ledger, say: Say, ranks: Ranks
) -> tuple[str, CheckpointManifest] | None:
    """The newest whole checkpoint that `depot` has; each rank reads a part of it."""

    def verified(depot: Depot, checkpoint: str) -> CheckpointManifest:
        share = (ranks.rank, ranks.world_size)
        return ranks.together(lambda: verify(depot, checkpoint, share)[0])[0]

    return newest(depot, name, lambda bad, error: _pass_over(ledger, say, bad, error), verified)


def _durable(store: Store, found: tuple[str, CheckpointManifest] | None) -> Saved | None:
    """The checkpoint as one to build on, if it is not in memory alone."""
    if found is None or found[0] not in {name for _, name in checkpoints(store.depot, found[1].run)}:
        return None
    return Saved(found[0], found[1].position)


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


def first_record(store: Store, recipe: Recipe, datasets: Datasets, ranks: Ranks) -> RunRecord:
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
        receipts=2,
        start_from=find_checkpoint(store.depot, recipe.run.start_from)[0] if recipe.run.start_from else None,
    )
    if record.sequences:
        return record
    rows = open_loader(store, recipe, record, datasets, []).rows(0, recipe.run.global_batch_size)
    dataset = next(iter(datasets.values()))[1]
    objective = open_objective(store, recipe, record, dataset, [])
    batches = microbatches(recipe, objective, dataset.separator_id, rows, 0)
    n_machines = ranks.world_size // ranks.local_world_size
    return dataclasses.replace(
        record, sequences=n_machines * sequences_in(recipe, precision, batches, rank_device(ranks.local_rank))
    )


def _build(
    store: Store,
    depot: Depot,
    ledger: Ledger,
    ranks: Ranks,
    nodes: Nodes | None,
    layout: Layout,
    record: RunRecord,
    recipe: Recipe,
    found: tuple[str, CheckpointManifest] | None,
    say: Say,
) -> Session:
    torch.set_num_threads(max(1, record.threads // ranks.local_world_size))
    datasets = open_datasets(store, recipe, record.datasets)
    loader = open_loader(store, recipe, record, datasets, ledger.history)
    objective = open_objective(store, recipe, record, loader.sources[0].manifest, ledger.history)
    device = rank_device(ranks.local_rank)
    mesh = Mesh(layout, device) if ranks.world_size > 1 else None
    varying = makes_long_rows(objective, recipe.model.kind)
    parallel = ParallelModel(
        recipe.model,
        mesh,
        recipe.parallel.settings(record.precision, recipe.optimizer.z_loss),
        device,
        (lambda model: model.compile_layers(varying_length=varying)) if recipe.run.compile else None,
    )
    parallel.weights.initialise(recipe.run.seed)
    if record.start_from and not found:
        first = read_manifest(store.depot, record.start_from)
        load_weights(store.depot, record.start_from, first, parallel.weights.parts(), grow_vocabulary=True)
    optimizer = Optimizer(parallel.weights, recipe.optimizer)
    reader = StepReader(recipe, loader, objective, layout, layout.coordinate(ranks.rank), record.receipts)
    saver = Saver(store, recipe.run.name, ranks.rank, recipe.checkpoint.snapshots)
    newest_durable = ranks.first(lambda: _durable(store, found))
    ring = open_ring(nodes, ranks, saver, say)
    saving = Saving(saver, ranks, ledger, say, recipe.checkpoint.max_age_minutes, newest_durable, ring)
    session = Session(store, ledger, ranks, record, recipe, reader, parallel, optimizer, saving)
    if found:
        with ledger.clock.phase("load"):
            ranks.together(lambda: session.restore(depot, *found))
    saving.prepare(session.parts())
    ledger.append(
        "start",
        session.position,
        durable=True,
        checkpoint=found[0] if found else None,
        step=session.step,
        ranks=ranks.world_size,
        layout=str(layout),
    )
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
