"""The ledger as ranks have it that do not write: its history and a clock."""

from typing import Any

from bushcraft.ledger.events import Event, EventType
from bushcraft.ledger.ledger import Ledger, Sealed
from bushcraft.ledger.phases import PhaseClock


class SilentLedger(Ledger):
    """What is appended goes nowhere: the first rank writes it."""

    def __init__(self, run: str, history: list[Event]) -> None:
        self.run = run
        self.history = history
        self.clock = PhaseClock()
        self.generation = 0

    def append(self, type_: EventType, position: int, durable: bool = False, **data: Any) -> Event:  # noqa: ARG002
        """Nothing is written."""
        return Event(
            type=type_,
            sequence=0,
            wall=0.0,
            mono=0.0,
            generation=self.generation,
            node="",
            rank=0,
            position=position,
            phases=self.clock.take(),
            data=data,
        )

    def sealed(self) -> Sealed:
        """Nothing is stored."""
        return Sealed("", (), (), 0)

    def confirm(self, sealed: Sealed) -> None:
        """Nothing was stored."""

    def close(self) -> None:
        """There is nothing to close."""
