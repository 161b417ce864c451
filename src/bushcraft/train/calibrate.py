"""How many sequences fit into `run.minutes` on this machine: measured once, at the first start of a run."""

import statistics
import time

from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import build_model
from bushcraft.objectives.batch import Batch
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import Recipe
from bushcraft.train.step import clip, gradients

WARMUP_STEPS = 2
MEASURED_STEPS = 7
MARGIN = 0.87
"""The share of the minutes that is planned for steps; data, the ledger, checkpoints and slower moments have the rest,
which took 14 % of a run of the tiny recipe."""


def sequences_in(recipe: Recipe, precision: str, batches: list[Batch]) -> int:
    """Sequences that train in `run.minutes`, in whole optimizer steps; at least one step. `batches` are one step's."""
    assert recipe.run.minutes is not None
    model = build_model(recipe.model)
    initialise(model, recipe.run.seed)
    optimizer = Optimizer(model, recipe.optimizer)
    seconds = []
    for _ in range(WARMUP_STEPS + MEASURED_STEPS):
        began = time.perf_counter()
        gradients(model, batches, 1.0, precision, recipe.optimizer.z_loss)
        clip(list(model.parameters()), recipe.optimizer.clip_norm)
        optimizer.step(0.0)
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds[WARMUP_STEPS:])
    return recipe.run.global_batch_size * max(1, int(MARGIN * 60 * recipe.run.minutes / typical))
