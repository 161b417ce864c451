"""Warmup, stable, decay as a function of progress."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bushcraft.train.recipe import ScheduleConfig
from bushcraft.train.schedule import learning_rate

PEAK = 3e-3
fractions = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    warmup = draw(fractions)
    decay = draw(st.floats(0, 1 - warmup))
    assume(warmup + decay <= 1)
    shape = draw(st.sampled_from(["linear", "sqrt"]))
    return ScheduleConfig(warmup=warmup, decay=decay, decay_shape=shape, final_fraction=draw(fractions))


@given(schedules(), fractions)
def test_rate_stays_between_zero_and_the_peak(schedule: ScheduleConfig, progress: float) -> None:
    assert 0 <= learning_rate(progress, schedule, PEAK) <= PEAK


@given(schedules(), fractions, fractions)
def test_rate_never_falls_before_the_decay_and_never_rises_in_it(
    schedule: ScheduleConfig, one: float, other: float
) -> None:
    earlier, later = sorted((one, other))
    before, after = (learning_rate(progress, schedule, PEAK) for progress in (earlier, later))
    if later <= 1 - schedule.decay:
        assert before <= after
    if earlier >= 1 - schedule.decay:
        assert before >= after


@given(schedules(), fractions)
def test_rate_is_the_peak_between_warmup_and_decay(schedule: ScheduleConfig, progress: float) -> None:
    assume(schedule.warmup <= progress <= 1 - schedule.decay)
    assert learning_rate(progress, schedule, PEAK) == PEAK


@given(schedules(), fractions)
def test_rate_has_no_jumps(schedule: ScheduleConfig, progress: float) -> None:
    """A small step of progress changes the rate by no more than the steepest part's bound allows."""
    step = 1e-6
    assume(progress + step <= 1)
    assume(schedule.warmup >= 1e-3 or progress >= schedule.warmup)
    assume(schedule.decay >= 1e-3 or progress + step <= 1 - schedule.decay)
    change = abs(learning_rate(progress + step, schedule, PEAK) - learning_rate(progress, schedule, PEAK))
    assert change <= PEAK * 1.01 * math.sqrt(step / 1e-3)


@given(schedules())
def test_rate_ends_at_the_final_fraction_of_the_peak(schedule: ScheduleConfig) -> None:
    assume(schedule.decay >= 1e-3)
    assert learning_rate(1.0, schedule, PEAK) == pytest.approx(PEAK * schedule.final_fraction, abs=1e-12)


def test_shapes_are_those_of_the_paper() -> None:
    linear = ScheduleConfig(warmup=0.1, decay=0.2, decay_shape="linear", final_fraction=0.1)
    sqrt = linear.model_copy(update={"decay_shape": "sqrt"})
    assert learning_rate(0.05, linear, 1.0) == pytest.approx(0.5)
    assert learning_rate(0.85, linear, 1.0) == pytest.approx(0.1 + 0.9 * 0.75)
    assert learning_rate(0.85, sqrt, 1.0) == pytest.approx(0.1 + 0.9 * 0.5)


def test_a_run_without_warmup_and_decay_keeps_the_peak() -> None:
    constant = ScheduleConfig(warmup=0.0, decay=0.0)
    assert [learning_rate(progress, constant, PEAK) for progress in (0.0, 0.5, 1.0)] == [PEAK] * 3
