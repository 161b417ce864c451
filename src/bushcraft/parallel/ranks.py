"""What all ranks must agree on: who decides, what each has found, and that one's failure is everybody's.

One rank is all ranks of itself: then nothing is sent.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bushcraft.errors import BushcraftError, RunError
from bushcraft.parallel.launch import die_with_parent
from bushcraft.parallel.world import World, join, leave

T = TypeVar("T")
MEETING = timedelta(minutes=10)
"""For the other ranks, at the start and in each collective."""
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out",
    "timed out",
    "Application timeout",
)
"""What gloo says when a rank is gone, or does not answer."""
PATIENCE = timedelta(days=2)
"""For what the first rank does alone, such as an evaluation. A rank that dies is noticed at once, by its connection."""


class Ranks:
    """All ranks of a run, seen from one of them. The process group has been joined."""

    def __init__(self, world: World | None = None) -> None:
        self.rank = world.rank if world else 0
        self.world_size = world.world_size if world else 1
        self.local_world_size = world.local_world_size if world else 1
        self.local_rank = world.local_rank if world else 0
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the ledger and speaks to the user."""
        return self.rank == 0

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, on all of them. What it raises is raised on all of them."""
        if self._group is None:
            return work()
        sent: list[Any] = [None]
        if self.is_first:
            try:
                sent = [(work(), None)]
            except Exception as error:
                self._send([(None, _sendable(error))])
                raise
        self._send(sent)
        found, failure = sent[0]
        if failure is not None:
            raise failure
        return found  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank, in their order. Where it fails on one, all raise what it raised."""
        if self._group is None:
            return [work()]
        try:
            mine: tuple[Any, BaseException | None] = (work(), None)
        except Exception as error:
            self.gathered((None, _sendable(error)))
            raise
        found = self.gathered(mine)
        for _, failure in found:
            if failure is not None:
                raise failure
        return [value for value, _ in found]

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._group)
        return values

    def _send(self, sent: list[Any]) -> None:
        dist.broadcast_object_list(sent, src=0, group=self._group)


@contextmanager
def joined(world: World | None, environment: Mapping[str, str]) -> Iterator[None]:
    """Meet the other ranks, and leave them afterwards; nothing where there are none.

    What another rank has told the user ends this one in silence. Errors: `RunError` where another rank is lost.
    """
    if world is None:
        yield
        return
    die_with_parent(environment)
    device = rank_device(world.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join(world, "cuda" if device.type == "cuda" else "cpu", timeout=MEETING)
    try:
        yield
    except ElsewhereError as error:
        raise SystemExit(error.exit_code) from None
    except RuntimeError as error:  # torch.distributed has no narrower class for a peer that went away
        if not any(sign in str(error) for sign in LOST):
            raise
        raise RunError(
            f"rank {world.rank} has lost another rank",
            "What that one said is above or in its own log; the same command goes on from the newest checkpoint",
        ) from error
    finally:
        leave()


def rank_device(local_rank: int) -> torch.device:
    """Where a rank computes: on a GPU of its own, the only one that it sees or that of its number; else on the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


class ElsewhereError(RunError):
    """Ends a rank because of what another one has told the user."""


def _sendable(error: BaseException) -> BaseException:
    """An error as other ranks raise it."""
    if isinstance(error, BushcraftError):
        told = ElsewhereError(error.message, error.next_step)
        told.exit_code = error.exit_code
        return told
    if type(error).__module__ == "builtins":
        return ElsewhereError(f"another rank failed: {type(error).__name__}: {error}")
    return error
