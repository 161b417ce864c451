"""Which layouts a device's memory would take, the best first.

The rule: no pipeline where it goes without, for its ranks wait; then least bytes sent over axes that leave a node, then
least computed again. Layouts are told apart by closed
formulas, which take the sizes of the weights exactly and those of activations roughly; the best few are simulated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from bushcraft.errors import RecipeError
from bushcraft.model.parameter_count import parameter_count
from bushcraft.parallel.batches import n_microbatches
from bushcraft.parallel.layout import AXES, Layout, check_layout, check_microbatches
from bushcraft.parallel.parallel_model import Settings
from bushcraft.parallel.recompute import Recompute
from bushcraft.train.dry_run.estimate import Estimate, simulate
from bushcraft.train.recipe import Recipe

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
MOST_SIMULATED, MOST_SUGGESTED = 6, 3
GPUS_PER_NODE = 8
CONTEXTS, PIPES = (1, 2, 4, 8), (1, 2, 4, 8, 16)
RESERVED = 0.06
"""Of a device's memory: what CUDA, NCCL and an allocator's gaps take of it."""

Suggestion = tuple[Layout, Settings, Estimate]


def fits(estimate: Estimate, device_bytes: int) -> bool:
    """Whether a device of so many bytes holds the peak, and what is never counted beside it."""
    return estimate.peak <= (1 - RESERVED) * device_bytes


def heaviest(recipe: Recipe, layout: Layout, settings: Settings) -> Estimate:
    """Of the rank that holds most: of a pipeline the first one, whose activations wait longest, or the last one, which
    has the losses; otherwise all are like the first."""
    ranks = {0, layout.world_size - layout.world_size // layout.pipe}
    return max((simulate(recipe, layout, settings, rank) for rank in ranks), key=lambda estimate: estimate.peak)


def suggest(
    recipe: Recipe,
    world_size: int,
    device_bytes: int,
    gpus_per_node: int = GPUS_PER_NODE,
    settings: Settings | None = None,
) -> list[Suggestion]:
    """Layouts of so many ranks that fit, best first; of the best few by formula, those that their simulation confirms.

    `settings` give the precision and the z-loss.
    """
    wanted = settings or recipe.parallel.settings(_precision(recipe), recipe.optimizer.z_loss)
    candidates = [_Candidate(recipe, *choice, gpus_per_node) for choice in _choices(recipe, world_size, wanted)]
    candidates.sort(key=_Candidate.rank)
    found: dict[Layout, Suggestion] = {}
    n_simulated, too_little = 0, 1.0
    for one in candidates:
        if n_simulated == MOST_SIMULATED or len(found) == MOST_SUGGESTED:
            break
        if one.layout in found or too_little * one.bytes_held() > (1 - RESERVED) * device_bytes:
            continue
        estimate = heaviest(recipe, one.layout, one.settings)
        n_simulated += 1
        if fits(estimate, device_bytes):
            found[one.layout] = one.layout, one.settings, estimate
        else:
            too_little = max(too_little, estimate.peak / one.bytes_held())
    return sorted(found.values(), key=lambda one: _rank(one, gpus_per_node))


def _rank(found: Suggestion, gpus_per_node: int) -> tuple[bool, int, int]:
    layout, settings, estimate = found
    return layout.pipe > 1, slow_bytes(estimate, gpus_per_node), RECOMPUTE.index(settings.recompute)


def slow_bytes(estimate: Estimate, gpus_per_node: int) -> int:
    """Of the bytes that a rank sends in a step, those to ranks that may be on other nodes."""
    return sum(
        sum(of_axes.values())
        for axes, of_axes in estimate.sent.items()
        if leaves_node(estimate.layout, axes, gpus_per_node)
    )


def leaves_node(layout: Layout, axes: str, gpus_per_node: int) -> bool:
    """Whether ranks that differ in these axes are further apart than a node is wide."""
    outermost = min(AXES.index(axis) for axis in axes.split("+"))
    span = 1
    for size in layout.shape[outermost:]:
        span *= size
    return span > gpus_per_node


@dataclass(frozen=True)
class _Candidate:
    """A layout by formulas. Bytes: 4 of a weight, a gradient and each state, 2 where bf16 is computed in."""

    recipe: Recipe
    layout: Layout
    settings: Settings
    gpus_per_node: int

    def rank(self) -> tuple[bool, float, int]:
        return self.layout.pipe > 1, self.bytes_sent_slowly(), RECOMPUTE.index(self.settings.recompute)

    def bytes_held(self) -> float:
        layout, model, width = self.layout, self.recipe.model, self._width()
        tokens = self.recipe.run.microbatch_size * self.recipe.run.sequence_length / layout.sequence_parts
        stages = layout.pipe  # the first one's activations wait for as many microbatches as there are stages
        in_flight = min(self._n_microbatches(), stages)
        n_layers = (model.n_layers + model.encoder_layers) / stages
        inside = {"none": 14.0 * model.d_model + 4.0 * model.d_ff, "selective": 5.0 * model.d_model + 2.0 * model.d_ff}
        kept = inside.get(self.settings.recompute, 1.0 * model.d_model)
        outside = 4 * model.vocab_size * model.d_model / layout.tensor
        whole = 0.0
        if self._n_microbatches() > 1 and not self.settings.reduce_each_microbatch:
            whole = 4 * self._weights()
        return (
            16 * self._weights() / (layout.shard * layout.context)
            + whole
            + outside
            + (tokens * n_layers * in_flight * kept * width * 0.7)
        )

    def bytes_sent_slowly(self) -> float:
        layout, n, width = self.layout, self._n_microbatches(), self._width()
        sent = 0.0
        if self._is_slow("shard") and layout.shard > 1:
            reductions = n if self.settings.reduce_each_microbatch else 1
            sent += self._weights() * (2 * n * width + 4 * reductions)
        if self._is_slow("replicate") and layout.replicate > 1:
            sent += 8 * self._weights() / (layout.shard * layout.context)
        tokens = n * self.recipe.run.microbatch_size * self.recipe.run.sequence_length
        hidden = tokens * self.recipe.model.d_model * width
        n_layers = (self.recipe.model.n_layers + self.recipe.model.encoder_layers) / layout.pipe
        if self._is_slow("context") and layout.context > 1:
            sent += 8 * hidden * n_layers / layout.sequence_parts
        if layout.pipe > 1:
            sent += 2 * hidden / layout.sequence_parts
        return sent

    def _weights(self) -> float:
        return parameter_count(self.recipe.model).total / (self.layout.tensor * self.layout.pipe)

    def _width(self) -> int:
        return 2 if self.settings.precision == "bf16" else 4

    def _n_microbatches(self) -> int:
        run = self.recipe.run
        return n_microbatches(run.global_batch_size, run.microbatch_size, self.layout.readers)

    def _is_slow(self, axis: str) -> bool:
        return leaves_node(self.layout, axis, self.gpus_per_node)


def _choices(recipe: Recipe, world_size: int, wanted: Settings) -> Iterator[tuple[Layout, Settings]]:
    tensors = [n for n in range(1, GPUS_PER_NODE + 1) if world_size % n == 0]
    for tensor, context, pipe in product(tensors, CONTEXTS, PIPES):
        rest, is_whole = divmod(world_size, tensor * context * pipe)
        if is_whole or not rest:
            continue
        for shard in (n for n in range(1, rest + 1) if rest % n == 0):
            layout = Layout(pipe=pipe, replicate=rest // shard, shard=shard, context=context, tensor=tensor)
            if _works(recipe, layout):
                for recompute, each in product(RECOMPUTE, (False, True)):
                    yield layout, replace(wanted, recompute=recompute, reshard=True, reduce_each_microbatch=each)


def _works(recipe: Recipe, layout: Layout) -> bool:
    run = recipe.run
    if layout.readers > run.global_batch_size:
        return False
    try:
        check_layout(layout, recipe.model)
        n = n_microbatches(run.global_batch_size, run.microbatch_size, layout.readers)
        check_microbatches(layout, n, run.global_batch_size)
    except RecipeError:
        return False
    return True


def _precision(recipe: Recipe) -> str:
    return "bf16" if recipe.run.precision == "auto" else recipe.run.precision
