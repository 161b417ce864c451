"""The parts of resilience, each with a clock of the test's own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.store.buckets.hedge import SHARE, HedgeBudget, Latencies, hedged
from bushcraft.store.buckets.limiter import Limiter
from bushcraft.store.buckets.resilience import Circuit, RetryPolicy, Timing


class FakeTime:
    def __init__(self) -> None:
        self.at = 100.0
        self.timing = Timing(lambda: self.at, self.pass_by, lambda _, high: high)

    def pass_by(self, seconds: float) -> None:
        self.at += seconds


def test_waits_double_up_to_a_limit() -> None:
    policy = RetryPolicy(first_wait=0.1, longest_wait=1.0)
    waits = [policy.wait(failed, FakeTime().timing) for failed in range(1, 7)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@given(failed=st.integers(1, 100))
def test_waits_are_random_below_the_limit(failed: int) -> None:
    policy = RetryPolicy()
    assert 0 <= policy.wait(failed, Timing()) <= policy.longest_wait


def test_circuit_closes_for_a_growing_while_and_lets_one_find_out() -> None:
    time = FakeTime()
    circuit = Circuit(time.timing, first_pause=1.0, longest_pause=3.0)
    for pause in (1.0, 2.0, 3.0, 3.0):
        assert circuit.attempts(6) in (6, 1)
        circuit.failed(time.at)
        assert circuit.attempts(6) == 0
        assert circuit.seconds_left() == pause
        time.pass_by(pause)
    assert [circuit.attempts(6), circuit.attempts(6)] == [1, 0]
    circuit.answered()
    assert circuit.attempts(6) == 6


def test_circuit_stays_while_others_get_through() -> None:
    time = FakeTime()
    circuit = Circuit(time.timing)
    begun = time.at
    time.pass_by(1)
    circuit.answered()
    circuit.failed(begun)
    assert circuit.attempts(6) == 6


def test_failures_that_were_under_way_together_count_once() -> None:
    time = FakeTime()
    circuit = Circuit(time.timing, first_pause=1.0)
    begun = time.at
    time.pass_by(5)
    for _ in range(10):
        circuit.failed(begun)
    assert circuit.seconds_left() == 1.0


def test_limit_is_halved_once_for_all_under_way_and_grows_slowly() -> None:
    time = FakeTime()
    limiter = Limiter(32, time.timing)
    for expected in (16, 8):
        begun = time.at = time.at + 1
        for _ in range(10):
            limiter.slow_down(begun)
            time.pass_by(0.01)
        assert limiter.limit == expected
    for _ in range(8):
        limiter.went_well()
    assert limiter.limit == 8
    for _ in range(2):
        limiter.went_well()
    assert limiter.limit == 9
    for _ in range(10_000):
        limiter.went_well()
    assert limiter.limit == 32


def test_limiter_never_stops_all_and_never_gives_more_than_its_limit() -> None:
    time = FakeTime()
    limiter = Limiter(2, time.timing)
    for _ in range(10):
        time.pass_by(1)
        limiter.slow_down(time.at)
        time.pass_by(1)
    assert limiter.limit == 1
    with limiter.slot(1.0), pytest.raises(TimeoutError), limiter.slot(0.0):
        pass
    with limiter.slot(0.0):
        pass


def test_late_is_the_95th_percentile_of_the_size() -> None:
    latencies = Latencies()
    assert latencies.late_after(1000) == 1.0
    for i in range(100):
        latencies.observe(1000, (i + 1) / 100)
        latencies.observe(100 << 20, 10.0)
    assert latencies.late_after(1000) == pytest.approx(0.95, abs=0.02)
    assert latencies.late_after(100 << 20) == 10.0
    for _ in range(300):
        latencies.observe(1000, 0.001)
    assert latencies.late_after(1000) == 0.05


def test_at_most_one_request_in_twenty_is_doubled() -> None:
    budget = HedgeBudget()
    taken = 0
    for _ in range(1000):
        budget.request()
        taken += budget.take()
    assert 45 <= taken <= SHARE * 1000 + 1


def run_hedged(first: object, second: object, may_hedge: bool = True) -> tuple[object, list[str]]:
    """Each is "stall", an error or a result; what came out, and which were started and cancelled."""
    log: list[str] = []

    async def act(name: str, what: object) -> object:
        log.append(name)
        try:
            if what == "stall":
                await asyncio.Event().wait()
            if isinstance(what, Exception):
                raise what
            return what
        except asyncio.CancelledError:
            log.append(f"{name} cancelled")
            raise

    async def both() -> object:
        async with asyncio.timeout(5):
            return await hedged(lambda: act("first", first), lambda: act("second", second), 0.01, lambda: may_hedge)

    return asyncio.run(both()), log


def test_the_double_of_a_stalled_request_wins_and_the_loser_is_cancelled() -> None:
    assert run_hedged("stall", "answer") == ("answer", ["first", "second", "first cancelled"])


def test_a_request_in_time_is_not_doubled() -> None:
    assert run_hedged("answer", "other") == ("answer", ["first"])


def test_an_error_in_time_is_not_doubled() -> None:
    with pytest.raises(ValueError, match="no"):
        run_hedged(ValueError("no"), "other")
