"""The batches of the next step, made by a thread while the present step is computed.

What a step reads follows from its position alone, so nothing is lost when what was made ahead is thrown away.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from bushcraft.train.step_data import StepData


class Ahead:
    """`at(position)` gives the data of the step at a position, and begins to make that of the one after it."""

    def __init__(self, make: Callable[[int, int], StepData], step: Callable[[int], tuple[int, int]]) -> None:
        """`step` tells which positions [begin, until) the step at a position consumes; none where begin == until."""
        self._make, self._step = make, step
        self._thread = ThreadPoolExecutor(1, "batches")
        self._made: dict[int, Future[StepData]] = {}

    def at(self, position: int) -> StepData | None:
        """None at the end of the run. Raises what reading the data raised."""
        begin, until = self._step(position)
        if begin == until:
            return None
        found = self._made.pop(position, None) or self._start(begin, until)
        self._made = {}
        data = found.result()
        after = self._step(until)
        if after[0] < after[1]:
            self._made[until] = self._start(*after)
        return data

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(cancel_futures=True)

    def _start(self, begin: int, until: int) -> Future[StepData]:
        return self._thread.submit(self._make, begin, until)
