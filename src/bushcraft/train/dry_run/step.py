"""The parts of a step on a simulated rank: its gradients, of a model of few layers, and its update, of the whole one.

The update is cheap to simulate and no multiple of a layer's: Muon deals matrices out over ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bushcraft.model.config import ModelConfig
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.layout import Coordinate, Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.parallel_model import ParallelModel, Settings, whole_shapes
from bushcraft.parallel.rules import box, is_cut_by_tensor, stage_layers
from bushcraft.parallel.simulation.few_chunks import losses_of_few_chunks
from bushcraft.parallel.simulation.rank import Device, SimulatedRank, simulated_rank
from bushcraft.parallel.simulation.traffic import Link
from bushcraft.parallel.weights import Weight, Weights
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import Recipe

CPU = torch.device("cpu")
Payloads = Counter[Link]


@dataclass(frozen=True)
class Held:
    """Bytes that a rank holds from step to step, the most during the update, and what it sends there."""

    parameters: int
    gradients: int
    optimizer: int
    peak: int
    payloads: Payloads


def simulate_update(recipe: Recipe, layout: Layout, rank: int, device: Device) -> Held:
    """Clip the gradients of all weights of the rank, and apply them."""
    with simulated_rank(layout, rank, device) as simulated:
        memory = simulated.memory
        weights = _weights(recipe.model, layout, simulated.mesh)
        parameters = memory.now
        optimizer = Optimizer(weights, recipe.optimizer)
        optimizer.prepare({"step": 1})
        state = memory.now - parameters
        for weight in weights.by_name.values():
            weight.held.grad = torch.empty_like(weight.held.data)
        gradients = memory.now - parameters - state
        memory.take_peak()
        weights.clip(recipe.optimizer.clip_norm)
        optimizer.step(recipe.optimizer.learning_rate)
        return Held(parameters, gradients, state, memory.take_peak(), simulated.traffic.take())


@dataclass(frozen=True)
class Sample:
    """What the gradients of a step took."""

    peaks: tuple[int, ...]
    """Bytes beside the parameters: the most in each stretch of the step."""
    payloads: Payloads


def simulate_gradients(
    config: ModelConfig,
    layout: Layout,
    settings: Settings,
    rank: int,
    device: Device,
    batches: Sequence[Batch],
) -> list[Sample]:
    """Of each microbatch, in their order; of a pipeline, which mixes them, one of all."""
    with simulated_rank(layout, rank, device) as simulated:
        model = ParallelModel(config, simulated.mesh, settings, CPU)
        for stage in model.stages:
            stage.losses = losses_of_few_chunks(simulated.traffic)
        stretches = _Stretches(simulated, config)
        if layout.n_stages == 1:
            stretches.watch(model.stages[0])
        model.gradients(list(batches), 1.0)
        stretches.end_microbatch()
        return stretches.samples


class _Stretches:
    """Cuts a microbatch where what is held by turns rises and falls with each layer: so that the most of each stretch
    grows evenly with the number of layers.

    The stretches are forwards, the last layer's way back, the others', and what is behind the first one's; of two
    stacks, those of each.
    """

    def __init__(self, simulated: SimulatedRank, config: ModelConfig) -> None:
        self._rank = simulated
        n_decoder = config.n_layers * (2 if config.encoder_layers else 1)
        n = n_decoder + config.encoder_layers
        self._cuts = [1, 2, n] if n == n_decoder else [1, 2, n_decoder, n_decoder + 1, n_decoder + 2, n]
        self._base = simulated.memory.now
        self._peaks: list[int] = []
        self.samples: list[Sample] = []
        simulated.memory.take_peak()
        simulated.traffic.take()  # a model is made once

    def watch(self, stage: nn.Module) -> None:
        stage.register_forward_pre_hook(lambda *_: self._begin_microbatch())
        self._rank.on_attention_backward = self._attended

    def end_microbatch(self) -> None:
        self._cut()
        self.samples.append(Sample(tuple(self._peaks), self._rank.traffic.take()))
        self._peaks = []

    def _begin_microbatch(self) -> None:
        if self._peaks:
            self.end_microbatch()
        self._n_attended = 0

    def _attended(self) -> None:
        self._n_attended += 1
        if self._n_attended in self._cuts:
            self._cut()

    def _cut(self) -> None:
        self._peaks.append(self._rank.memory.take_peak() - self._base)


def _weights(config: ModelConfig, layout: Layout, mesh: Mesh | None) -> Weights:
    """All weights of the rank, of plain tensors."""
    at = mesh.at if mesh else Coordinate()
    shapes, axes = whole_shapes(config)
    found = []
    for name in _names(config, layout, at, list(shapes)):
        place = box(shapes[name], axes[name], layout, at)
        held = nn.Parameter(torch.empty(place.shape))
        counts = at.tensor == 0 or is_cut_by_tensor(axes[name])
        found.append(Weight(name, axes[name], shapes[name], place, held, held, counts, counts))
    return Weights(found, mesh)


def _names(config: ModelConfig, layout: Layout, at: Coordinate, names: list[str]) -> list[str]:
    """Of the stages that a rank has."""
    if layout.n_stages == 1:
        return names
    stages = range(at.pipe, layout.n_stages, layout.pipe)
    layers = {layer for stage in stages for layer in stage_layers(config.n_layers, layout, stage)}
    ends = {"embedding"} if at.pipe == 0 else set()
    if layout.n_stages - 1 in stages:
        ends |= {"norm", "embedding" if config.tie_embeddings else "unembedding"}
    return [name for name in names if (name.split(".")[0] in ends) or _layer(name) in layers]


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None
