"""What `bushcraft evaluate` does: find the model, measure what was asked for, keep the result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bushcraft.checkpoint.weights import load_weights
from bushcraft.errors import DataError, RecipeError
from bushcraft.model.transformer import build_model
from bushcraft.store.workspace import Store
from bushcraft.train.evaluation import Evaluation, domains, probe
from bushcraft.train.load_model import find_model
from bushcraft.train.probes import probes
from bushcraft.train.sample import TextModel

PRECISIONS = ("fp32", "bf16")


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
    saved = find_model(store, run)
    model = build_model(saved.recipe.model)
    load_weights(store.depot, saved.name, saved.manifest, model)
    text = TextModel.of(model, store.depot, saved.dataset, saved.recipe, saved.manifest.tokenizer)
    names = list(datasets or [])
    asks_more = with_probes or bool(task_files)
    has_text = bool(saved.dataset.splits) and saved.dataset.kind == "text"
    if not names and has_text and (text.prompts.goes_on or not asks_more):
        names = [next(iter(saved.manifest.datasets.values()))]
    if not (names or asks_more):
        raise DataError(
            f"run {run!r} has no held-out text to score", "Name a data set by --data, or ask --probes or --lm-eval"
        )
    with torch.no_grad():
        found = Evaluation(
            run=saved.manifest.run,
            checkpoint=saved.name,
            position=saved.manifest.position,
            domains=domains(store, saved, text, names, precision, max_bytes, progress) if names else {},
            probes=probe(text, probes(), precision) if with_probes else [],
            tasks=_tasks(text, precision, task_files, limit, progress) if task_files else {},
        )
    return found, found.publish(store)


def _tasks(
    model: TextModel, precision: str, files: Sequence[Path], limit: int | None, progress: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    try:
        from bushcraft.train.lm_eval_adapter import run_tasks
    except ImportError as error:
        raise DataError(
            f"--lm-eval needs lm-evaluation-harness, which is not installed ({error})",
            "pip install 'bushcraft[eval]' -c constraints.txt",
        ) from None
    progress("tasks of lm-evaluation-harness")
    found: dict[str, dict[str, Any]] = run_tasks(model, precision, files, limit)
    return found
