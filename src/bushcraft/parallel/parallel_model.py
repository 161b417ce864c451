"""A model cut over the ranks of a mesh: built from the plain one, from outside of it.

With one rank it is the plain model, and nothing else happens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.cross_entropy import WHOLE_VOCABULARY, cross_entropy
from bushcraft.model.packed import Packed
from bushcraft.model.parameter_count import parameter_count
from bushcraft.model.precision import compute_precision, multiplies_bf16
from bushcraft.model.transformer import Block, Decoder, Model, build_model
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.batches import of_one_shape, widened
from bushcraft.parallel.layout import Coordinate, Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.pipeline import Pipeline
from bushcraft.parallel.recompute import Recompute, recompute_layers
from bushcraft.parallel.rules import local_config, parameter_axes
from bushcraft.parallel.sequence import cut_model, positions_of, vocabulary_part, whole_positions
from bushcraft.parallel.stage import COPY, cut_layers
from bushcraft.parallel.weights import weights_of

Compile = Callable[[Model], None]
Losses = Callable[..., tuple[Tensor, Tensor]]
"""`cross_entropy`, or what stands for it."""


def whole_shapes(config: ModelConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """The global shape and the logical axes of each parameter."""
    with torch.device("meta"):
        model = build_model(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}, parameter_axes(model)


class LossModel(nn.Module):
    """A model with the losses of its objective; both in one, so that what gathers weights gathers those of both."""

    def __init__(self, model: Model, mesh: Mesh | None, vocab_size: int, z_loss: float, is_last: bool) -> None:
        super().__init__()
        self.model = model
        self._is_last = is_last
        self.z_loss = z_loss
        self.losses: Losses = cross_entropy
        self._mesh = mesh
        self._vocabulary = (vocabulary_part(mesh, vocab_size) if mesh else None) or WHOLE_VOCABULARY

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor,
        weights_BS: Tensor,
        segments: Segments,
        encoder: Packed | None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Summed nats of this rank's positions, and their z-loss times its coefficient; of a stage of a pipeline that
        is not the last, hidden states."""
        h_BSD: Tensor = self.model(tokens_BS, segments, encoder)
        if not self._is_last:
            return h_BSD
        if self._mesh is not None:
            h_BSD = whole_positions(h_BSD, self._mesh)
            targets_BS, weights_BS = (positions_of(x, self._mesh) for x in (targets_BS, weights_BS))
        return self.losses(
            h_BSD.flatten(0, 1),
            self.model.unembedding_VD,
            targets_BS.flatten(),
            weights_BS.flatten(),
            self.z_loss,
            self.model.config.logit_soft_cap,
            self._vocabulary,
        )


@dataclass(frozen=True)
class Settings:
    """What of a layout is choice, beside its numbers."""

    recompute: Recompute = "none"
    reshard: bool = True
    """Whether a block's gathered weights are dropped after its forward pass, and gathered for its backward pass."""
    reduce_each_microbatch: bool = False
    """Whether gradients are summed over ranks after each microbatch, so that none is held whole until the step ends."""
    z_loss: float = 0.0
    precision: str = "fp32"


class ParallelModel:
    """What one rank computes of a model, and what it holds of its weights, which are yet to be filled."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh | None,
        settings: Settings,
        device: torch.device,
        compile_layers: Compile | None = None,
    ) -> None:
        self.config, self.mesh, self.settings, self.device = config, mesh, settings, device
        at = mesh.at if mesh else Coordinate()
        layout = mesh.layout if mesh else Layout()
        shapes, axes = whole_shapes(config)
        with torch.device("meta"):
            self.stages = [self._stage(stage, layout, at) for stage in range(at.pipe, layout.n_stages, layout.pipe)]
        for stage in self.stages:
            recompute_layers(stage, settings.recompute)
            if compile_layers is not None:
                compile_layers(stage.model)
            self._fully_shard(stage)
            stage.to_empty(device=device)
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    module.unshard()  # FSDP decides now where the weights lie for good
                    module.reshard()
        aliases = {COPY: "embedding.weight"} if layout.n_stages > 1 and config.tie_embeddings else {}
        self.weights = weights_of((stage.model for stage in self.stages), shapes, axes, mesh, aliases)
        self._pipeline = self._pipelined(mesh) if mesh and layout.n_stages > 1 else None

    @property
    def n_parameters(self) -> int:
        """Of the whole model."""
        return parameter_count(self.config).total

    @property
    def layout(self) -> Layout:
        return self.mesh.layout if self.mesh else Layout()

    def gradients(self, batches: list[Batch], n_targets: float) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of the mean loss over the step's `n_targets`, of all ranks: (loss, z-loss), each a
        mean. `batches` are this rank's, equally many on each rank."""
        batches = [widened(batch, self.layout.sequence_parts) for batch in batches]
        with compute_precision(self.settings.precision):
            if self._pipeline:
                n_rows = max(batch.tokens.shape[0] for batch in batches)
                inputs = [self._inputs(batch) for batch in of_one_shape(batches, n_rows)]
                totals = self._pipeline.run(inputs, n_targets)
            else:
                totals = self._accumulate(batches, n_targets)
        self.weights.take_gradients()
        return self._over_ranks(totals, n_targets)

    def _accumulate(self, batches: list[Batch], n_targets: float) -> Tensor:
        """(2,): nats and z-loss of this rank's positions."""
        (stage,) = self.stages
        totals = torch.zeros(2, device=self.device)
        for i, batch in enumerate(batches):
            if isinstance(stage, FSDPModule):
                stage.set_requires_gradient_sync(self.settings.reduce_each_microbatch or i == len(batches) - 1)
            nll, z = stage(*self._inputs(batch))
            ((nll + z) / n_targets).backward()
            totals += torch.stack([nll.detach(), z.detach()])
        return totals

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        batch = batch.to(self.device)
        return batch.tokens, batch.targets, batch.loss_weights, batch.segments, batch.encoder

    def _over_ranks(self, totals: Tensor, n_targets: float) -> tuple[Tensor, Tensor]:
        if self.mesh is not None:
            if self.mesh.at.tensor > 0:  # the ranks of `tensor` have the same losses
                totals.zero_()
            dist.all_reduce(totals)
        loss, z = (totals / n_targets).unbind()
        return loss, z

    def _stage(self, stage: int, layout: Layout, at: Coordinate) -> LossModel:
        config = local_config(self.config, layout, at)
        model = build_model(config)
        if isinstance(model, Decoder) and layout.n_stages > 1:
            cut_layers(model, config, layout, stage)
        if self.mesh is not None:
            cut_model(model, self.mesh, self.config.vocab_size)
        is_last = stage == layout.n_stages - 1
        return LossModel(model, self.mesh, self.config.vocab_size, self.settings.z_loss, is_last)

    def _pipelined(self, mesh: Mesh) -> Pipeline:
        return Pipeline(self.stages, mesh, self.config.d_model, self.settings.reduce_each_microbatch)

    def _fully_shard(self, stage: LossModel) -> None:
        """FSDP over each block, and over what is left of the model."""
        if self.mesh is None or self.mesh.weights is None:
            return
        is_bf16 = self.settings.precision == "bf16" and multiplies_bf16(self.device)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        shard = partial(fully_shard, mesh=self.mesh.weights)
        for module in stage.modules():
            if isinstance(module, Block):
                shard(module, mp_policy=policy, reshard_after_forward=self.settings.reshard)
        shard(stage, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False))
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the loss is divided by the step's targets already
                module.set_force_sum_reduction_for_comms(True)
