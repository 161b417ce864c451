"""Where a run's wall-clock time went: goodput and named badput that sum to 100 %.

Goodput is time in steps whose result is part of the run. Steps that a crash made the run do again are
`redone`; the time between a process's last event and the next process is `down`.
"""

from dataclasses import dataclass

from bushcraft.ledger.events import Event


@dataclass(frozen=True)
class Goodput:
    """Seconds by kind: `step` (goodput), the other phases, `redone` and `down`."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput over wall-clock time, 0 to 1."""
        return self.seconds.get("step", 0.0) / self.total if self.total else 0.0

    def shares(self) -> dict[str, float]:
        """Per cent by kind, largest first; they sum to 100."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {kind: 100 * seconds / self.total for kind, seconds in ordered} if self.total else {}


def goodput(events: list[Event]) -> Goodput:
    """Account for the time from the first process's start to the last event."""
    seconds: dict[str, float] = {}

    def add(kind: str, amount: float) -> None:
        if amount > 0:
            seconds[kind] = seconds.get(kind, 0.0) + amount

    kept = _steps_that_count(events)
    for before, event in zip([None, *events], events, strict=False):
        if before is not None and event.generation != before.generation:
            # The new process starts its clock when it starts; what lies before that is down time.
            add("down", event.wall - before.wall - sum(event.phases.values()))
        for phase, amount in event.phases.items():
            lost = phase == "step" and event.type == "step" and event.sequence not in kept
            add("redone" if lost else phase, amount)
    return Goodput(seconds)


def _steps_that_count(events: list[Event]) -> set[int]:
    """Sequence numbers of the last step event at each position: the ones that the weights come from."""
    return set({event.position: event.sequence for event in events if event.type == "step"}.values())
