"""When a checkpoint is due: by the recipe, or by what saves cost and how often the run has failed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.ledger.events import Event
from bushcraft.train.interval import (
    FIRST,
    LONGEST,
    SHORTEST,
    CheckpointDue,
    best_interval,
    failures_and_hours,
    mean_time_between_failures,
)
from bushcraft.train.recipe import CheckpointConfig


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def event(type_: str, generation: int, hours: float) -> Event:
    return Event(
        type=type_,  # type: ignore[arg-type]
        sequence=0,
        wall=0.0,
        mono=0.0,
        generation=generation,
        node="n",
        rank=0,
        position=0,
        phases={"step": 3600 * hours},
        data={},
    )


def test_generations_that_did_not_say_that_they_end_are_failures() -> None:
    history = [event("step", 0, 3), event("start", 1, 1), event("interrupted", 1, 1), event("step", 2, 5)]
    assert failures_and_hours(history) == (2, 10)


def test_the_mean_time_between_failures_begins_at_the_prior_and_follows_the_run() -> None:
    assert mean_time_between_failures(0, 0) == 12
    assert mean_time_between_failures(10, 10) == pytest.approx(2)
    assert mean_time_between_failures(0, 720) == 732


@given(st.floats(1e-3, 600), st.floats(0.1, 1e4))
def test_the_interval_is_youngs_within_its_bounds(cost: float, mtbf: float) -> None:
    found = best_interval(cost, mtbf, 0.0)
    assert found == pytest.approx(min(LONGEST, max(SHORTEST, math.sqrt(2 * cost * mtbf * 3600))))


def test_a_save_has_ended_before_the_next_is_due() -> None:
    assert best_interval(0.1, 1.0, save_seconds=400.0) == 800.0


def test_without_an_interval_in_the_recipe_the_first_save_measures_what_one_costs() -> None:
    clock = Clock()
    due = CheckpointDue(CheckpointConfig(), 0, [event("run", 0, 0.1)], 0, clock)
    assert not due.at(8)
    clock.now = FIRST
    assert due.at(16)
    due.begun(16)
    assert not due.at(24)
    due.ended(cost=0.5, save_seconds=3.0)
    assert due.seconds == pytest.approx(best_interval(0.5, mean_time_between_failures(0, FIRST / 3600), 3.0))


def test_an_interval_in_the_recipe_is_kept() -> None:
    clock = Clock()
    due = CheckpointDue(CheckpointConfig(every_minutes=5.0), 0, [], 0, clock)
    due.ended(cost=100.0, save_seconds=3.0)
    clock.now = 299.0
    assert not due.at(8)
    clock.now = 300.0
    assert due.at(16)


def test_positions_are_crossed_whatever_the_steps_are() -> None:
    due = CheckpointDue(CheckpointConfig(every_sequences=24), 0, [], 0, Clock())
    saved = []
    for position in range(10, 100, 10):
        if due.at(position):
            saved.append(position)
            due.begun(position)
    assert saved == [30, 50, 80]
