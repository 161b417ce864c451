"""A stop that somebody asks for: Ctrl-C or SIGTERM, noticed where the run can be left whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(Exception):  # noqa: N818 - no error: what was asked for
    """Leaves the work in hand, which the same command does again."""


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    asked: bool = False

    @contextmanager
    def on_signals(self) -> Iterator["StopRequest"]:
        """Listen inside the block; a second Ctrl-C interrupts at once, which loses no durable byte."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                signal.default_int_handler(number, frame)
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Between two pieces of work, of which none takes long. Raises `Stopped` if somebody asked."""
        if self.asked:
            raise Stopped
