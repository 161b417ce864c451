"""What `bushcraft evaluate` does: find the model, measure what was asked for, keep the result."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bushcraft.checkpoint.weights import load_weights
from bushcraft.data.manifest import read_manifest
from bushcraft.errors import DataError, RecipeError
from bushcraft.model.transformer import build_model
from bushcraft.store.workspace import Store
from bushcraft.train.evaluation import Evaluation, domains, heldout_sets, objective_losses, probe
from bushcraft.train.load_model import SavedModel, find_model
from bushcraft.train.probes import probes
from bushcraft.train.sample import TextModel

PRECISIONS = ("fp32", "bf16")
RunTasks = Callable[[TextModel, str, Sequence[Path], int | None], dict[str, dict[str, Any]]]


def evaluate_run(
    store: Store,
    run: str,
    datasets: Sequence[str] | None,
    max_bytes: int | None,
    with_probes: bool,
    task_files: Sequence[Path],
    limit: int | None,
    precision: str,
    progress: Callable[[str], None],
) -> tuple[Evaluation, str]:
    """The evaluation, and its object name. Errors: `CheckpointError`, `DataError`, `RecipeError`, `StoreError`."""
    if precision not in PRECISIONS:
        raise RecipeError(f"--precision is {precision}", f"Use {' or '.join(PRECISIONS)}")
    for path in task_files:
        if not path.is_file():
            raise DataError(f"there is no task file {path}", "Name a YAML file of lm-evaluation-harness")
    run_tasks = _harness() if task_files else None
    saved = find_model(store, run)
    model = build_model(saved.recipe.model)
    load_weights(store.depot, saved.name, saved.manifest, model)
    text = TextModel.of(model, store.depot, saved.dataset, saved.recipe, saved.manifest.tokenizer)
    names = list(datasets or _own_data(store, saved))
    if not (names or with_probes or task_files):
        raise DataError(
            f"run {run!r} has nothing held out to score", "Name a data set by --data, or ask --probes or --lm-eval"
        )
    manifests = heldout_sets(store, saved, text, names)
    with torch.no_grad():
        found = Evaluation(
            run=saved.manifest.run,
            checkpoint=saved.name,
            position=saved.manifest.position,
            domains=domains(store, text, manifests, precision, max_bytes, progress),
            objective_losses=objective_losses(store, saved, text, manifests, precision, max_bytes, progress),
            probes=probe(text, probes(), precision) if with_probes else [],
        )
        if run_tasks:
            progress("tasks of lm-evaluation-harness")
            found = replace(found, tasks=run_tasks(text, precision, task_files, limit))
    return found, found.publish(store)


def _own_data(store: Store, saved: SavedModel) -> list[str]:
    """The object names of the run's data sets of which something is held out; none of an imported model."""
    found = []
    for name in dict.fromkeys(saved.manifest.datasets.values()):
        heldout = read_manifest(store.depot, name)[1].splits.get("heldout")
        if heldout and heldout.n_documents:
            found.append(name)
    return found


def _harness() -> RunTasks:
    """What runs tasks of lm-evaluation-harness. Errors: `DataError` where that is not installed."""
    try:
        from bushcraft.train.lm_eval_adapter import run_tasks
    except ImportError as error:
        raise DataError(
            f"--lm-eval needs lm-evaluation-harness, which is not installed ({error})",
            "pip install 'bushcraft[eval]' -c constraints.txt",
        ) from None
    return run_tasks
