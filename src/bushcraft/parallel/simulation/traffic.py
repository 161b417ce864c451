"""Bytes that a rank sends by collectives, by mesh axes: counted from the operators that torch calls for them.

Each collective is counted as a ring of n ranks makes it (Thakur, Rabenseifner & Gropp 2005, section 4), whatever the
library does: of a payload, all-gather (its whole output) and reduce-scatter (its whole input) send (n - 1) / n,
all-reduce, which is one after the other, twice that; all-to-all sends its input less what stays here; a send all of it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.distributed_c10d import GroupName

from bushcraft.parallel.layout import AXES, Layout

SILENT = {"wait_tensor", "_wrap_tensor_autograd", "recv_"}
"""Operators of torch.distributed that send nothing."""


@dataclass(frozen=True)
class Link:
    """Who talks to whom how."""

    axes: str
    """The mesh axes in which the ranks differ, as "shard" or "shard+context"."""
    collective: str
    n_ranks: int

    def sent(self, payload: int) -> int:
        """Bytes that this rank sends of that payload."""
        if self.collective in ("all-to-all", "send"):
            return payload
        return payload * (self.n_ranks - 1) * (2 if self.collective == "all-reduce" else 1) // self.n_ranks


class Traffic:
    """Payloads of one rank's collectives, summed by `Link`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._links: dict[tuple[int, ...], tuple[str, int]] = {}
        self._factor = (1, 1)
        self.payloads: Counter[Link] = Counter()

    def count(self, operator: Any, args: tuple[Any, ...]) -> None:
        """An operator of torch.distributed and its arguments."""
        if operator.overloadpacket.__name__ in SILENT:
            return
        collective, group, payload = _read(operator, args)
        if group.size() == 1:
            return
        ranks = tuple(dist.get_process_group_ranks(group))
        if ranks not in self._links:
            self._links[ranks] = _axes(self._layout, ranks), len(ranks)
        whole, of = self._factor
        self.payloads[Link(self._links[ranks][0], collective, len(ranks))] += payload * whole // of

    @contextmanager
    def times(self, whole: int, part: int) -> Iterator[None]:
        """What is sent inside of the block is sent `whole` / `part` times."""
        self._factor = (whole, part)
        try:
            yield
        finally:
            self._factor = (1, 1)

    def take(self) -> Counter[Link]:
        """What was counted since the last call."""
        taken, self.payloads = self.payloads, Counter()
        return taken


def sent_by_axes(payloads: Mapping[Link, int]) -> dict[str, dict[str, int]]:
    """Bytes sent, by mesh axes and by collective."""
    found: dict[str, dict[str, int]] = {}
    for link, payload in payloads.items():
        if payload:
            of_axes = found.setdefault(link.axes, {})
            of_axes[link.collective] = of_axes.get(link.collective, 0) + link.sent(payload)
    return found


def _axes(layout: Layout, ranks: tuple[int, ...]) -> str:
    places = [layout.coordinate(rank) for rank in ranks]
    return "+".join(axis for axis in AXES if len({getattr(place, axis) for place in places}) > 1)


def _read(operator: Any, args: tuple[Any, ...]) -> tuple[str, dist.ProcessGroup, int]:
    """The collective, its group, and its payload in bytes."""
    match operator.overloadpacket.__name__:
        case "allreduce_":
            return "all-reduce", _group(args[1]), sum(map(_bytes, args[0]))
        case "_allgather_base_":
            return "all-gather", _group(args[2]), _bytes(args[0])
        case "_reduce_scatter_base_":
            return "reduce-scatter", _group(args[2]), _bytes(args[1])
        case "alltoall_base_":
            return _all_to_all(_group(args[2]), args[1], args[4])
        case "send":
            return "send", _group(args[1]), sum(_bytes(x) for x in args[0] if x.is_floating_point())
        case "all_gather_into_tensor":
            return "all-gather", _group(args[2]), _bytes(args[0]) * args[1]
        case "reduce_scatter_tensor":
            return "reduce-scatter", _group(args[3]), _bytes(args[0])
        case "all_to_all_single":
            return _all_to_all(_group(args[3]), args[0], args[2])
    raise AssertionError(operator)


def _all_to_all(group: dist.ProcessGroup, sent: Tensor, split: list[int] | None) -> tuple[str, dist.ProcessGroup, int]:
    size = sent.element_size()
    stays = split[group.rank()] * (sent.numel() // max(1, len(sent))) if split else sent.numel() // group.size()
    return "all-to-all", group, (sent.numel() - int(stays)) * size


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _group(group: Any) -> dist.ProcessGroup:
    """From how an operator names it."""
    if isinstance(group, str):
        return _resolve_process_group(GroupName(group))
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)
