"""How many requests an endpoint gets at a time: as many as it bears.

Additive increase, multiplicative decrease, as TCP does (Chiu and Jain 1989): the limit is halved when the endpoint
says 503 or "slow down", and grows by one for each full round of requests that went well.
"""

import contextlib
import threading
from collections.abc import Iterator

from bushcraft.store.buckets.resilience import Timing


class Limiter:
    """Slots for requests. Thread-safe."""

    def __init__(self, most: int, timing: Timing) -> None:
        self._most = most
        self._timing = timing
        self._limit = float(most)
        self._in_use = 0
        self._halved = float("-inf")
        self._free = threading.Condition()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @contextlib.contextmanager
    def slot(self, longest: float) -> Iterator[float]:
        """One request's turn; the time at which it came. Errors: `TimeoutError` after `longest` seconds."""
        with self._free:
            if not self._free.wait_for(lambda: self._in_use < self.limit, max(0.0, longest)):
                raise TimeoutError
            self._in_use += 1
        try:
            yield self._timing.now()
        finally:
            with self._free:
                self._in_use -= 1
                self._free.notify()

    def went_well(self) -> None:
        with self._free:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._free.notify()

    def slow_down(self, begun: float) -> None:
        """The endpoint refused a request that began at `begun`; all that were under way with it halve once."""
        with self._free:
            if begun > self._halved:
                self._limit = max(1.0, self._limit / 2)
                self._halved = self._timing.now()
