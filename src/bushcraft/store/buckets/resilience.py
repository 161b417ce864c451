"""When a request to a bucket is tried again, and when an endpoint is left alone for a while.

A retry waits longer each time, by a random share, so that many clients do not come back together. An endpoint that
answered nobody through all retries is not asked again for a growing while: a caller learns so at once and can turn to
another depot.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """The clock, the sleep and the chance of everything that waits; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Source: Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog.
    """

    attempts: int = 8
    first_wait: float = 0.1
    """Seconds: the most that the first retry waits."""
    longest_wait: float = 5.0
    deadline: float = 30.0
    """Seconds of one operation, all its retries together, beside the time that its bytes need."""

    def wait(self, failed: int, timing: Timing) -> float:
        """Seconds to wait after the `failed`-th failure."""
        return timing.uniform(0.0, min(self.longest_wait, self.first_wait * 2 ** (failed - 1)))


class Circuit:
    """Whether an endpoint is asked at all. Thread-safe.

    Source: Nygard 2007, "Release It!", chapter 5 (circuit breaker).
    """

    def __init__(self, timing: Timing, first_pause: float = 1.0, longest_pause: float = 60.0) -> None:
        self._timing = timing
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._lock = threading.Lock()
        self._pause = 0.0
        self._paused_at = 0.0
        self._answered = float("-inf")

    def attempts(self, usual: int) -> int:
        """How often an operation may try: as `usual`, once after a pause (one caller finds out), or not at all."""
        with self._lock:
            now = self._timing.now()
            if not self._pause:
                return usual
            if now < self._paused_at + self._pause:
                return 0
            self._paused_at = now  # the others wait for what this one finds
            return 1

    def answered(self) -> None:
        """The endpoint answered, if only to refuse."""
        with self._lock:
            self._answered = self._timing.now()
            self._pause = 0.0

    def failed(self, begun: float) -> None:
        """An operation that began at `begun` got no answer in all its attempts."""
        with self._lock:
            if self._answered >= begun:
                return  # others got through meanwhile
            if self._pause and begun < self._paused_at:
                return  # it began before the pause did, and tells nothing new
            self._pause = min(self._longest_pause, self._pause * 2 or self._first_pause)
            self._paused_at = self._timing.now()

    def seconds_left(self) -> float:
        """Until the endpoint is asked again."""
        with self._lock:
            return max(0.0, self._paused_at + self._pause - self._timing.now()) if self._pause else 0.0
