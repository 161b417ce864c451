"""How many sequences fit into `run.minutes` on this machine: measured once, at the first start of a run."""

import statistics
import time

import torch

from bushcraft.objectives.batch import Batch
from bushcraft.parallel.parallel_model import ParallelModel
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import Recipe

WARMUP_STEPS = 2
MEASURED_STEPS = 7
MARGIN = 0.87
"""The share of the minutes that is planned for steps; data, the ledger, checkpoints and slower moments have the rest,
which took 14 % of a run of the tiny recipe."""


def sequences_in(recipe: Recipe, precision: str, batches: list[Batch], device: torch.device) -> int:
    """Sequences that train in `run.minutes`, in whole optimizer steps; at least one step. `batches` are one step's."""
    assert recipe.run.minutes is not None
    settings = recipe.parallel.settings(precision, recipe.optimizer.z_loss)
    model = ParallelModel(recipe.model, None, settings, device)
    model.weights.initialise(recipe.run.seed)
    optimizer = Optimizer(model.weights, recipe.optimizer)
    seconds = []
    for _ in range(WARMUP_STEPS + MEASURED_STEPS):
        began = time.perf_counter()
        model.gradients(batches, 1.0)
        model.weights.clip(recipe.optimizer.clip_norm)
        optimizer.step(0.0)
        model.weights.zero_gradients()
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds[WARMUP_STEPS:])
    return recipe.run.global_batch_size * max(1, int(MARGIN * 60 * recipe.run.minutes / typical))
