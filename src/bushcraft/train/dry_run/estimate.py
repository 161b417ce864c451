"""What a rank of a layout will hold, send and compute in a step, without any of it: the real code on simulated ranks.

A few layers and microbatches are simulated, and what they cost is extended: what a step holds and sends grows by the
same for each layer, and for each microbatch between the first and the last. The update is simulated whole.

Not counted: CUDA's own context (about 0.5 GB), NCCL's buffers, and what the allocator loses between blocks.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from bushcraft.model.config import ModelConfig
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.batches import microbatch_bounds
from bushcraft.parallel.layout import Layout, check_layout, check_microbatches
from bushcraft.parallel.parallel_model import Settings
from bushcraft.parallel.rules import stage_layers
from bushcraft.parallel.simulation.rank import Device
from bushcraft.parallel.simulation.traffic import sent_by_axes
from bushcraft.train.dry_run.batches import flops_per_step, longest_batch
from bushcraft.train.dry_run.step import Sample, simulate_gradients, simulate_update
from bushcraft.train.recipe import Recipe

FEWEST_LAYERS = 3
"""Of a stack that is simulated: a first, a last and one between them."""
FEWEST_MICROBATCHES = 3


@dataclass(frozen=True)
class Estimate:
    """Of one rank: bytes that it holds, bytes that it sends in a step, and operations."""

    layout: Layout
    settings: Settings
    rank: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """The most that is held beside these three: activations, gathered weights, gradients that are not yet summed, what
    operators work on."""
    sent: dict[str, dict[str, int]]
    """Bytes a step by mesh axes ("shard", "shard+context") and collective, as `parallel.simulation` counts them."""
    flops: float
    """Of the model's products and attention, as `model/flops.py` counts them; what is computed again is not counted."""

    @property
    def peak(self) -> int:
        """Bytes at the moment when most are held."""
        return self.parameters + self.gradients + self.optimizer + self.activations

    @property
    def sent_bytes(self) -> int:
        """In a step, over all axes."""
        return sum(sum(by_collective.values()) for by_collective in self.sent.values())

    def to_data(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {**asdict(self), "peak": self.peak, "sent_bytes": self.sent_bytes}


def simulate(recipe: Recipe, layout: Layout, settings: Settings, rank: int = 0, device: Device = "cuda") -> Estimate:
    """One optimizer step of a rank, as on its second step, when the optimizer's state exists.

    All microbatches are as long as the longest of some of the first ones of the recipe, of sequences of one document
    each: most positions and most attention. Errors: `RecipeError` where the layout does not fit the model or the batch.
    """
    check_layout(layout, recipe.model)
    run, at = recipe.run, layout.coordinate(rank)
    bounds = microbatch_bounds(run.global_batch_size, run.microbatch_size, layout.readers, layout.reader(at))
    check_microbatches(layout, len(bounds), run.global_batch_size)
    batch = longest_batch(recipe, max(1, *(end - begin for begin, end in bounds)))
    held = simulate_update(recipe, layout, rank, device)
    gradients = _gradients(recipe.model, layout, _Run(settings, rank, device, batch, len(bounds)))
    at_rest = held.parameters + held.optimizer
    most = max(at_rest + max(gradients.peaks), held.peak)
    return Estimate(
        layout=layout,
        settings=settings,
        rank=rank,
        parameters=held.parameters,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=most - at_rest - held.gradients,
        sent=sent_by_axes(gradients.payloads + held.payloads),
        flops=flops_per_step(recipe) / layout.world_size,
    )


@dataclass(frozen=True)
class _Run:
    """What a simulation takes, beside the model and the layout."""

    settings: Settings
    rank: int
    device: Device
    batch: Batch
    n_microbatches: int

    def sample(self, config: ModelConfig, layout: Layout, n: int) -> list[Sample]:
        """Of `n` microbatches."""
        return simulate_gradients(config, layout, self.settings, self.rank, self.device, [self.batch] * n)


def _gradients(config: ModelConfig, layout: Layout, run: _Run) -> Sample:
    """The whole step's, with the peaks of its stretches, extended from few layers."""
    most = max(len(stage_layers(config.n_layers, layout, stage)) for stage in range(layout.n_stages))
    deep = {"n_layers": most > FEWEST_LAYERS + 1, "n_encoder_layers": config.encoder_layers > FEWEST_LAYERS + 1}
    n_stages = layout.n_stages
    mine = range(layout.coordinate(run.rank).pipe, n_stages, layout.pipe)
    n_mine = sum(len(stage_layers(config.n_layers, layout, stage)) for stage in mine)
    few = {"n_layers": FEWEST_LAYERS * n_stages, "n_encoder_layers": FEWEST_LAYERS}
    more = {"n_layers": n_stages, "n_encoder_layers": 1}
    times = {
        "n_layers": Fraction(n_mine, len(mine)) - FEWEST_LAYERS,
        "n_encoder_layers": Fraction(config.encoder_layers - FEWEST_LAYERS),
    }
    stacks = [name for name, is_deep in deep.items() if is_deep]
    base = config.model_copy(update={name: few[name] for name in stacks})
    found = whole = _step(base, layout, run)
    for name in stacks:
        longer = base.model_copy(update={name: few[name] + more[name]})
        found = _extended(found, whole, _step(longer, layout, run), times[name])
    return found


def _step(config: ModelConfig, layout: Layout, run: _Run) -> Sample:
    """A step of all microbatches, extended from few."""
    n = run.n_microbatches
    if layout.n_stages > 1:
        return _pipelined_step(config, layout, run)
    samples = run.sample(config, layout, min(n, FEWEST_MICROBATCHES))
    peaks = tuple(peak for sample in samples for peak in sample.peaks)
    payloads = sum((sample.payloads for sample in samples), Counter())
    for link, payload in samples[1].payloads.items() if n > FEWEST_MICROBATCHES else ():
        payloads[link] += (n - FEWEST_MICROBATCHES) * payload
    return Sample(peaks, payloads)


def _pipelined_step(config: ModelConfig, layout: Layout, run: _Run) -> Sample:
    step = layout.pipe if layout.stages_per_rank > 1 else 1
    few = -(-layout.n_stages // step) * step
    if run.n_microbatches <= few + step:
        return run.sample(config, layout, run.n_microbatches)[0]
    first, second = (run.sample(config, layout, n)[0] for n in (few, few + step))
    extended = _extended(first, first, second, Fraction(run.n_microbatches - few, step))
    return Sample(second.peaks, extended.payloads)  # a pipeline that is full holds no more


def _extended(found: Sample, begin: Sample, end: Sample, times: Fraction) -> Sample:
    """`found`, and so many times what `end` has more than `begin`."""

    def grown(value: int, a: int, b: int) -> int:
        return value + int(times * (b - a))

    links = found.payloads.keys() | end.payloads.keys()
    return Sample(
        tuple(grown(*values) for values in zip(found.peaks, begin.peaks, end.peaks, strict=True)),
        Counter({k: grown(found.payloads[k], begin.payloads[k], end.payloads[k]) for k in links}),
    )
