"""The layout of a run: that of its recipe for so many ranks, if model and batch can be cut so."""

from bushcraft.parallel.batches import n_microbatches
from bushcraft.parallel.layout import Layout, check_layout, check_microbatches
from bushcraft.train.recipe import Recipe


def checked_layout(recipe: Recipe, world_size: int) -> Layout:
    """Errors: `RecipeError` that says which numbers would fit."""
    layout = recipe.parallel.layout(world_size)
    check_layout(layout, recipe.model)
    n_sequences = recipe.run.global_batch_size
    n = n_microbatches(n_sequences, recipe.run.microbatch_size, layout.readers)
    check_microbatches(layout, n, n_sequences)
    return layout
