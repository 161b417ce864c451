"""When the next checkpoint is due: as the recipe says, or as the cost of a save and the failures of this run say.

Young (1974), eq. 3; Daly (2006), eq. 37 to first order: the time between two saves that costs least is √(2 · C · M),
where C is what a save takes from training and M the mean time between failures.
"""

import math
import time
from collections.abc import Callable, Iterable

from bushcraft.ledger.events import Event
from bushcraft.train.recipe import CheckpointConfig

PRIOR_FAILURES, PRIOR_HOURS = 1.0, 12.0
"""What is believed of a cluster that nothing is known of: a Gamma prior on the rate, worth one failure in 12 hours."""
SHORTEST, LONGEST = 30.0, 1800.0
"""Seconds between two saves, at least and at most."""
ENDS = ("finished", "interrupted")
"""How a generation ends that did not fail."""
FIRST = 60.0
"""Seconds to the first save, which measures what one costs."""


def failures_and_hours(history: Iterable[Event]) -> tuple[int, float]:
    """The generations of a run that ended without saying so, and the hours of all."""
    seconds: dict[int, float] = {}
    ended: set[int] = set()
    for event in history:
        seconds[event.generation] = seconds.get(event.generation, 0.0) + sum(event.phases.values())
        if event.type in ENDS:
            ended.add(event.generation)
    return len(set(seconds) - ended), sum(seconds.values()) / 3600


def mean_time_between_failures(failures: int, hours: float) -> float:
    """Hours: the inverse of the rate's mean in the Gamma posterior, (1 + failures) / (12 h + hours)."""
    return (PRIOR_HOURS + hours) / (PRIOR_FAILURES + failures)


def best_interval(cost: float, mtbf_hours: float, save_seconds: float) -> float:
    """Seconds between two saves that cost `cost` seconds of training each; a save must have ended before the next."""
    return min(LONGEST, max(SHORTEST, 2 * save_seconds, math.sqrt(2 * cost * mtbf_hours * 3600)))


class CheckpointDue:
    """Whether a checkpoint is due, by the position, by the clock, or by what saves cost."""

    def __init__(
        self,
        config: CheckpointConfig,
        position: int,
        history: Iterable[Event],
        generation: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._now = config, now
        self._failures, self._hours = failures_and_hours(event for event in history if event.generation < generation)
        self._begun_at, self._position = now(), position
        self._started = now()
        self.seconds = 60 * config.every_minutes if config.every_minutes else FIRST
        """From one save to the next, where the clock decides."""

    @property
    def by_position(self) -> bool:
        """Whether saves are at exact positions, so that one waits for the one before."""
        return self._config.every_sequences is not None

    def at(self, position: int) -> bool:
        """Asked after each step."""
        if self._config.every_sequences:
            return self._position // self._config.every_sequences != position // self._config.every_sequences
        return self._now() - self._begun_at >= self.seconds

    def begun(self, position: int) -> None:
        """A save was begun."""
        self._begun_at, self._position = self._now(), position

    def ended(self, cost: float, save_seconds: float) -> None:
        """It took `cost` seconds from training, and `save_seconds` in all."""
        if not (self._config.every_minutes or self._config.every_sequences):
            hours = self._hours + (self._now() - self._started) / 3600
            mtbf = mean_time_between_failures(self._failures, hours)
            self.seconds = best_interval(cost, mtbf, save_seconds)
