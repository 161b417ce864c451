"""Wherever a save is killed, the newest durable checkpoint is the one that is loaded, to the bit."""

from collections import Counter
from pathlib import Path

import pytest

from tests.checkpoint.killed_save import (
    LOCAL,
    ONE_FOLLOWS,
    TWO_COPIES,
    Ending,
    Setup,
    Trial,
    losses_after_kills,
    trials,
)

POINTS = {"open", "write", "fsync", "rename", "mkdir", "reference"}
"""Before each of these some save is killed; `remove` comes only where a killed writer has left something."""


def check(found: list[Trial]) -> None:
    assert [trial for trial in found if not trial.right] == []
    assert [trial for trial in found if not trial.newest_durable] == []


@pytest.mark.parametrize("setup", [LOCAL, TWO_COPIES, ONE_FOLLOWS], ids=["local", "two copies", "one follows"])
@pytest.mark.parametrize("endings", [("operation", "clock"), ("operation", "power")], ids=["killed", "power lost"])
def test_the_newest_durable_checkpoint_outlives_a_few_ends(
    tmp_path: Path, setup: Setup, endings: tuple[Ending, ...]
) -> None:
    check(list(trials(8, 1, setup, tmp_path, endings)))


@pytest.mark.slow
def test_of_1000_killed_saves_none_loses_a_durable_checkpoint_or_gives_an_unverified_one(tmp_path: Path) -> None:
    found = []
    for number, (setup, n) in enumerate([(LOCAL, 600), (TWO_COPIES, 200), (ONE_FOLLOWS, 200)]):
        (tmp_path / str(number)).mkdir()
        found += list(trials(n, number, setup, tmp_path / str(number), ("operation", "operation", "clock")))
    check(found)
    assert len(found) == 1000
    killed = Counter(trial.before for trial in found)
    assert set(killed) >= POINTS, killed
    assert killed[""] > 200


@pytest.mark.slow
def test_what_a_killed_save_had_not_synced_is_synced_by_the_next_that_relies_on_it(tmp_path: Path) -> None:
    """An object that has its name already is not written again, nor is a directory made: are they durable?"""
    check(list(losses_after_kills(LOCAL, tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(("setup", "n"), [(LOCAL, 100), (TWO_COPIES, 40)], ids=["local", "two copies"])
def test_a_loss_of_power_loses_nothing_durable_also_after_kills(tmp_path: Path, setup: Setup, n: int) -> None:
    check(list(trials(n, 11, setup, tmp_path, ("operation", "power"))))
