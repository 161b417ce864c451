"""Batches made ahead are those that would have been made in time, and their errors come where they belong."""

import threading
from contextlib import closing

import pytest

from bushcraft.errors import CorruptObjectError
from bushcraft.train.ahead import Ahead
from bushcraft.train.step_data import StepData

END = 12


def step(position: int) -> tuple[int, int]:
    """Four sequences at once, to the end."""
    return position, min(position + 4, END)


def data(begin: int, until: int) -> StepData:
    return StepData(begin, until, digests=b"", n_tokens=0, n_targets=0.0, batches=[])


def test_each_step_gets_its_own_data_and_the_end_is_the_end() -> None:
    with closing(Ahead(data, step)) as ahead:
        found = [ahead.at(position) for position in (0, 4, 8)]
        assert [(d.begin, d.until) for d in found if d] == [(0, 4), (4, 8), (8, 12)]
        assert ahead.at(12) is None


def test_the_next_step_is_made_while_the_present_one_is_worked_on() -> None:
    made = {begin: threading.Event() for begin in (0, 4, 8)}

    def make(begin: int, until: int) -> StepData:
        made[begin].set()
        return data(begin, until)

    with closing(Ahead(make, step)) as ahead:
        ahead.at(0)
        assert made[4].wait(10)
        assert not made[8].is_set()


def test_another_position_than_was_expected_gets_its_data_too() -> None:
    with closing(Ahead(data, step)) as ahead:
        ahead.at(0)
        found = ahead.at(8)
        assert found is not None
        assert (found.begin, found.until) == (8, 12)


def test_an_error_is_raised_by_the_step_that_needs_the_data_and_not_before() -> None:
    def make(begin: int, until: int) -> StepData:
        if begin == 4:
            raise CorruptObjectError("object x is corrupted", "Restore it")
        return data(begin, until)

    with closing(Ahead(make, step)) as ahead:
        ahead.at(0)
        with pytest.raises(CorruptObjectError):
            ahead.at(4)
