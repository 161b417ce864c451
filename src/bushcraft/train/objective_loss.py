"""The loss under the run's own objective on held-out text: what training minimises, where nothing was memorised."""

from collections.abc import Callable

from torch import Tensor

from bushcraft.data.loader import Loader, open_source, order_source
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.order import Order
from bushcraft.objectives.batch import Batch
from bushcraft.store.depot import Depot
from bushcraft.train.objective import build_objective, microbatches, objective_tokens
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import present_weights

CACHE_BYTES = 1 << 24


def objective_loss(
    nats: Callable[[Batch], Tensor],
    depot: Depot,
    manifest: DatasetManifest,
    recipe: Recipe,
    max_bytes: int,
) -> float | None:
    """Nats a target over the held-out sequences, about `max_bytes` of them; None where there are none.

    `nats` gives a batch's summed loss, weights applied. Which tokens are hidden follows from the recipe's seed and
    the place in the held-out text, so two evaluations of one run ask the same questions.
    """
    split, length = manifest.splits["heldout"], recipe.run.sequence_length
    if split.n_tokens < 2:
        return None
    source = open_source(depot, "heldout", manifest, CACHE_BYTES, "heldout")
    order = Order((order_source(source, length),), 0, (1.0,), 1)
    loader = Loader((source,), order, length)
    special = objective_tokens(depot, manifest, recipe.objective)
    objective = build_objective(recipe, special, ((0, present_weights(recipe)),))
    n_rows = min(order.sources[0].n_sequences, max(1, max_bytes * split.n_tokens // (split.n_text_bytes * length)))
    total = n_targets = 0.0
    size = recipe.run.microbatch_size
    for begin in range(0, n_rows, size):
        rows = loader.rows(begin, min(begin + size, n_rows))
        for batch in microbatches(recipe, objective, manifest.separator_id, rows, begin):
            total += float(nats(batch))
            n_targets += float(batch.loss_weights.sum())
    return total / n_targets if n_targets else None
