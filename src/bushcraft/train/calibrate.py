"""How many sequences fit into `run.minutes` on this machine: measured once, at the first start of a run."""

import statistics
import time

import torch

from bushcraft.model.attention import Segments
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


def sequences_in(recipe: Recipe, precision: str) -> int:
    """Sequences that train in `run.minutes`, in whole optimizer steps; at least one step."""
    assert recipe.run.minutes is not None
    size, part = recipe.run.global_batch_size, recipe.run.microbatch_size
    model = build_model(recipe.model)
    initialise(model, recipe.run.seed)
    optimizer = Optimizer(model, recipe.optimizer)
    batch = _random_batch(part, recipe.run.sequence_length, recipe.model.vocab_size)
    seconds = []
    for _ in range(WARMUP_STEPS + MEASURED_STEPS):
        began = time.perf_counter()
        gradients(model, [batch] * (size // part), 1.0, precision, recipe.optimizer.z_loss)
        clip(list(model.parameters()), recipe.optimizer.clip_norm)
        optimizer.step(0.0)
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds[WARMUP_STEPS:])
    return size * max(1, int(MARGIN * 60 * recipe.run.minutes / typical))


def _random_batch(n_rows: int, width: int, vocab_size: int) -> Batch:
    tokens = torch.randint(vocab_size, (n_rows, width + 1))
    row = torch.arange(n_rows, dtype=torch.int32)
    zeros = torch.zeros_like(row)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        loss_weights=torch.ones(n_rows, width),
        segments=Segments(row=row, start=zeros, prefix_length=zeros, length=torch.full_like(row, width)),
    )
