"""A second request where the first is late.

Of many requests a few take very long, for no reason of their own. After the time that 95 % need, the same request goes
out once more on other connections, and the first answer wins. At most 5 % of requests are doubled, so that an endpoint
that is slow for all is not asked twice as much.

Source: Dean and Barroso 2013, "The Tail at Scale", section "Hedged requests".
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

FLOOR = 0.05
"""Seconds: no request is late before that."""
UNKNOWN = 1.0
"""Seconds after which a request is late while too few were seen."""
WINDOW = 256
"""Requests of one size class that are remembered."""
FEWEST = 20
SHARE = 0.05


class Latencies:
    """How long the last requests took, by size: classes are a factor of four apart, from 64 KiB. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[int, deque[float]] = {}

    def observe(self, n_bytes: int, seconds: float) -> None:
        with self._lock:
            self._seconds.setdefault(_size_class(n_bytes), deque(maxlen=WINDOW)).append(seconds)

    def late_after(self, n_bytes: int) -> float:
        """The 95th percentile of the class, in seconds."""
        with self._lock:
            seconds = sorted(self._seconds.get(_size_class(n_bytes), ()))
        return max(FLOOR, seconds[int(0.95 * (len(seconds) - 1))]) if len(seconds) >= FEWEST else UNKNOWN


def _size_class(n_bytes: int) -> int:
    return max(0, n_bytes.bit_length() - 15) // 2


class HedgeBudget:
    """At most `SHARE` of all requests, and one to begin with. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.hedges = 0

    def request(self) -> None:
        with self._lock:
            self.requests += 1

    def take(self) -> bool:
        """Whether one more request may be doubled; it then counts."""
        with self._lock:
            allowed = self.hedges < max(1.0, SHARE * self.requests)
            self.hedges += allowed
            return allowed


async def hedged(
    first: Callable[[], Coroutine[Any, Any, T]],
    second: Callable[[], Coroutine[Any, Any, T]],
    late_after: float,
    may_hedge: Callable[[], bool],
) -> T:
    """What `first` gives, or what `second` gives if that is sooner; the loser is cancelled.

    Errors: those of `first`.
    """
    tasks = [asyncio.create_task(first())]
    try:
        done, _ = await asyncio.wait(tasks, timeout=late_after)
        if not done and may_hedge():
            tasks.append(asyncio.create_task(second()))
        return await _first_success(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await _settled(tasks)


async def _first_success(tasks: list[asyncio.Task[T]]) -> T:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result()
    return tasks[0].result()


async def _settled(tasks: list[asyncio.Task[T]]) -> None:
    """Take every task's end, so that none is reported as forgotten."""
    waiting: list[Awaitable[T]] = list(tasks)
    await asyncio.gather(*waiting, return_exceptions=True)
