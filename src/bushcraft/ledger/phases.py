"""A clock that is always in exactly one phase, so that its phases sum to the wall-clock time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import psutil

from bushcraft.ledger.events import Phase


class PhaseClock:
    """Splits time by phase. It starts in `import`, at the start of the process that it runs in."""

    def __init__(self, now: Callable[[], float] = time.time, started: float | None = None) -> None:
        self._now = now
        self._since = psutil.Process(os.getpid()).create_time() if started is None else started
        self._phase: Phase = "import"
        self._seconds: dict[str, float] = {}

    def enter(self, phase: Phase) -> Phase:
        """Go over to `phase`; the phase that ends."""
        now = self._now()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + max(0.0, now - self._since)
        ended, self._phase, self._since = self._phase, phase, now
        return ended

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Be in `phase` inside the block, and in the phase before it afterwards."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last take."""
        self.enter(self._phase)
        taken, self._seconds = self._seconds, {}
        return {phase: round(seconds, 6) for phase, seconds in taken.items() if seconds > 0}
