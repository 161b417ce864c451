"""The schedule in which the stages of a pipeline take the microbatches of a step.

1F1B or, with several stages a rank, interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2), of
torch.distributed.pipelining. What is sent are hidden states; tokens, targets and segments every stage has for itself,
and a microbatch is called by its number. Shapes: B rows, S positions, D model width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.stage import Received


class Pipeline:
    """This rank's stages; `stages` are models that take a batch's tensors and give hidden states or losses."""

    def __init__(self, stages: Sequence[nn.Module], mesh: Mesh, width: int, reduce_each_microbatch: bool) -> None:
        """`width` is D."""
        self._mesh, self._width = mesh, width
        self._steps = [_Stage(stage, reduce_each_microbatch) for stage in stages]
        self._shape: tuple[int, ...] | None = None
        self._schedule: Any = None

    def run(self, batches: Sequence[tuple[Any, ...]], n_targets: float) -> Tensor:
        """Forwards and backwards through microbatches of one shape, each the inputs of a stage: nats and z-loss, (2,);
        zero but on the ranks of the last stage."""
        (n_rows, length), device = batches[0][0].shape, batches[0][0].device
        shape = (len(batches), n_rows, length // self._mesh.layout.sequence_parts)
        if shape != self._shape:
            self._schedule, self._shape = self._scheduled(*shape), shape
        totals = torch.zeros(2, device=device)
        for step in self._steps:
            step.batches, step.n_targets, step.totals = batches, n_targets, totals
        numbers = torch.arange(len(batches))
        is_first, is_last = self._mesh.at.pipe == 0, self._mesh.at.pipe == self._mesh.layout.pipe - 1
        inputs = (numbers,) if is_first else ()
        self._schedule.step(
            *inputs, target=numbers if is_last else None, number=numbers, losses=[], return_outputs=False
        )
        return totals

    def _scheduled(self, n_microbatches: int, n_rows: int, length: int) -> Any:
        layout, pipe = self._mesh.layout, self._mesh.at.pipe
        hidden = torch.empty(n_rows, length, self._width, device="meta", requires_grad=True)
        number, loss = (
            torch.empty(1, dtype=torch.int64, device="meta"),
            torch.empty(1, device="meta", requires_grad=True),
        )
        stages: list[Any] = []
        for i, step in enumerate(self._steps):
            index = pipe + i * layout.pipe
            sent = loss if index == layout.n_stages - 1 else hidden
            received = hidden if index else number
            group = self._mesh.group("pipe")
            stages.append(
                PipelineStage(
                    step, index, layout.n_stages, self._mesh.device, input_args=received, output_args=sent, group=group
                )
            )
        settings: dict[str, Any] = {"loss_fn": lambda loss_1, _: loss_1.sum(), "scale_grads": False}
        if layout.stages_per_rank > 1:
            return ScheduleInterleaved1F1B(stages, n_microbatches, **settings)
        return Schedule1F1B(stages[0], n_microbatches, **settings)


class _Stage(nn.Module):
    """What the schedule calls: hidden states, or the loss of the last stage, of the microbatch of that number."""

    batches: Sequence[tuple[Any, ...]]
    n_targets: float
    totals: Tensor

    def __init__(self, stage: nn.Module, reduce_each_microbatch: bool) -> None:
        super().__init__()
        self.stage = stage
        is_sharded = isinstance(stage, FSDPModule) and not reduce_each_microbatch
        self._set_reducing: Callable[[bool], None] | None = stage.set_requires_gradient_sync if is_sharded else None  # type: ignore[assignment]
        self._received = [module for module in stage.modules() if isinstance(module, Received)]

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        for received in self._received:
            received.x_BSD = x
        found: Any = self.stage(*self.batches[int(number)])
        if not isinstance(found, Tensor):
            nll, z = found
            self.totals += torch.stack([nll.detach(), z.detach()])
            found = ((nll + z) / self.n_targets).unsqueeze(0)
        if self._set_reducing is not None:  # the backward passes of a stage come in the order of their numbers
            is_last = int(number) == len(self.batches) - 1
            found.register_hook(partial(_call, self._set_reducing, is_last))
        return found  # type: ignore[no-any-return]


def _call(function: Callable[[bool], None], flag: bool, _gradient: Tensor) -> None:
    function(flag)
