"""A batch of the recipe's objective without data: sequences of one document each, of random tokens."""

import numpy as np

from bushcraft.data.loader import Rows
from bushcraft.data.order import Samples
from bushcraft.data.packing import Pieces
from bushcraft.model.flops import training_flops
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import Objective, Prefix, batch_of, makes_long_rows
from bushcraft.objectives.special import MODES, special_tokens
from bushcraft.train.objective import DatasetTokens, build_objective
from bushcraft.train.recipe import Recipe

SEPARATOR = 0
MOST_LOOKED_AT = 64
"""Sequences: among so many UL2 has drawn each of its denoisers, but once in thousands of recipes."""


def longest_batch(recipe: Recipe, n_sequences: int) -> Batch:
    """Of so many sequences, the one with most positions among the first ones."""
    return max(_batches(recipe, n_sequences), key=_n_positions)


def flops_per_step(recipe: Recipe) -> float:
    """Of all ranks, from the mean over the first sequences."""
    batches = _batches(recipe, 1)
    of_each = [
        training_flops(recipe.model, batch.segments, batch.encoder.segments if batch.encoder else None)
        for batch in batches
    ]
    return sum(of_each) / len(of_each) * recipe.run.global_batch_size


def _batches(recipe: Recipe, n_sequences: int) -> list[Batch]:
    """The first ones, or one where all are alike."""
    objective = _objective(recipe)
    is_long = makes_long_rows(objective, recipe.model.kind)
    n = max(1, min(recipe.run.global_batch_size, MOST_LOOKED_AT) // n_sequences) if is_long else 1
    rows = _rows(recipe, n * n_sequences)
    return [
        batch_of(objective, rows.part(begin, begin + n_sequences), begin, recipe.model.kind, SEPARATOR)
        for begin in range(0, n * n_sequences, n_sequences)
    ]


def _n_positions(batch: Batch) -> int:
    return batch.tokens.numel() + (batch.encoder.tokens.numel() if batch.encoder else 0)


def _objective(recipe: Recipe) -> Objective:
    config = recipe.objective
    if "sft" in config.kinds:
        return Prefix(recipe.run.seed)  # conversations are as long as they are: here as long as can be
    n_sentinels = config.n_sentinels if config.hides_spans else 0
    modes = MODES[config.mode_names] if config.has_modes else ()
    n_text = recipe.model.vocab_size - n_sentinels - len(modes)
    special = DatasetTokens(**vars(special_tokens({}, n_text, SEPARATOR, n_sentinels, modes)))
    weights = {name: part.weight for name, part in config.parts.items()}
    return build_objective(recipe, special, ((0, weights),))


def _rows(recipe: Recipe, n: int) -> Rows:
    length = recipe.run.sequence_length
    tokens = np.random.default_rng(0).integers(1, max(2, recipe.model.vocab_size // 2), (n, length + 1))
    numbers = np.arange(n)
    pieces = Pieces(numbers, np.zeros_like(numbers), np.full_like(numbers, length))
    return Rows(tokens, np.full(n, length), pieces, Samples(np.zeros_like(numbers), np.zeros_like(numbers), numbers))
