"""One rank of many in a single process, which computes nothing: the real code on tensors that have a shape and no data.

Tensors of floats are fake; integers are real, because masks and positions are computed from their values. Collectives
go to a process group that answers at once. What the rank holds and sends is counted by the operators that it calls.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bushcraft.model import attention_cpu, precision
from bushcraft.parallel.layout import AXES, Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.simulation.memory import Memory
from bushcraft.parallel.simulation.traffic import Traffic

Device = Literal["cpu", "cuda"]

_aten, _ours = torch.ops.aten, torch.ops.bushcraft
COLLECTIVES = ("c10d", "_c10d_functional")
CPU = torch.device("cpu")


class SimulatedRank:
    """What is counted of the rank, and its mesh, inside of `simulated_rank`."""

    def __init__(self, mesh: Mesh | None, layout: Layout) -> None:
        self.mesh = mesh
        self.memory, self.traffic = Memory(), Traffic(layout)
        self.on_attention_backward: Callable[[], None] = lambda: None
        """Called at each backward pass of attention, before it."""


@contextmanager
def simulated_rank(layout: Layout, rank: int, device: Device) -> Iterator[SimulatedRank]:
    """This process is that rank inside of the block, on tensors without data; it must have no process group.

    On "cuda" products of bf16 are what they are there, and attention is one call with the workspace of flash attention;
    on "cpu" it is opened, for its blocks are tensors like others. Every tensor says that it lies on the CPU.
    """
    with ExitStack() as stack:
        mesh = stack.enter_context(_one_mesh(layout, rank)) if layout.world_size > 1 else None
        simulated = SimulatedRank(mesh, layout)
        if device == "cuda":
            stack.enter_context(precision.assumed_bf16_units())  # every CUDA device that trains has them
        stack.enter_context(simulated.memory.follows_resizing())
        stack.enter_context(_Operators(simulated, device))
        yield simulated


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator below autograd."""

    def __init__(self, rank: SimulatedRank, device: Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rank, self._device = rank, device
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented  # they call operators of what they wrap, which come here
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0
        if func.namespace in COLLECTIVES:
            self._rank.traffic.count(func, args)
            if func is torch.ops.c10d.recv_.default and not isinstance(args[0][0], FakeTensor):
                args[0][0].fill_(1)  # stages of a pipeline vote by an integer whether they know all shapes
        found = self._attention(func, args) if func.namespace == "bushcraft" else None
        if found is None:
            found = self._call(func, args, kwargs)
        for tensor in _tensors(found):
            if tensor.device.type != "meta":
                self._rank.memory.hold(tensor)
        return found

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if _is_fake(func, _tensors((args, kwargs)), kwargs):
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(self, func: Any, args: Any) -> Any:
        """The result where attention is opened; else its workspace is counted, and None."""
        is_forward = func is _ours.segment_attention.default
        is_backward = func is _ours.segment_attention_backward.default
        if is_backward:
            self._rank.on_attention_backward()
        if self._device == "cpu" and (is_forward or is_backward):
            operator = attention_cpu.segment_attention if is_forward else attention_cpu._segment_attention_backward
            with self:
                return operator._init_fn(*args)
        if is_backward:
            self._rank.memory.add_for_a_moment(_flash_backward_bytes(*args[1:3]))
        return None


def _is_fake(func: Any, tensors: list[Tensor], kwargs: Any) -> bool:
    """Whether an operator makes floats of this rank, or takes some."""
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return True
    device = kwargs.get("device") or (tensors[0].device if tensors else CPU)
    if torch.device(device).type == "meta":
        return False
    dtype: torch.dtype | None = kwargs.get("dtype")
    if dtype is not None:
        return dtype.is_floating_point
    comes_from_shapes = all(tensor.device.type == "meta" for tensor in tensors)
    return comes_from_shapes and func.overloadpacket is not _aten.arange


def _flash_backward_bytes(q_BSHE: Tensor, k_BTKE: Tensor) -> int:
    """What flash attention 2 adds up gradients in: of queries in fp32, of keys and values by query head.

    Source: Dao 2023 (arXiv:2307.08691), flash_api.cpp of its code: dq_accum, dk_expanded, dv_expanded.
    """
    keys = 0 if k_BTKE.shape[2] == q_BSHE.shape[2] else k_BTKE.numel() // k_BTKE.shape[2] * q_BSHE.shape[2]
    return q_BSHE.numel() * 4 + 2 * keys * k_BTKE.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _one_mesh(layout: Layout, rank: int) -> Iterator[Mesh]:
    assert not dist.is_initialized()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        yield _OwnGroups(layout, CPU)
    finally:
        dist.destroy_process_group()


class _OwnGroups(Mesh):
    """The mesh of a rank that nobody else meets: of all groups it makes its own alone."""

    def _make(self, axes: tuple[str, ...]) -> dist.ProcessGroup:
        places = tuple(slice(None) if axis in axes else getattr(self.at, axis) for axis in AXES)
        return _group(self._ranks[places])

    def _ends(self) -> dist.ProcessGroup | None:
        if self.layout.pipe == 1 or self.at.pipe not in (0, self.layout.pipe - 1):
            return None
        return _group(self._ranks.flatten(1)[[0, -1], self.rank % self._ranks[0].numel()])


def _group(ranks: Tensor) -> dist.ProcessGroup:
    group = dist.new_group(ranks.flatten().tolist())
    assert isinstance(group, dist.ProcessGroup)
    return group
