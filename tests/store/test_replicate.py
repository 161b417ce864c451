"""Depots are brought what they lack, by their journals and by comparison."""

from pathlib import Path
from random import Random

import pytest

from bushcraft.store.care.replicate import note_all, replicate
from tests.store.three_depots import NAMES, damage, delete, depots_of, directory, fill, silence, three_depots


def test_journals_are_worked_off_and_the_progress_is_told(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    names = [store.depot.put_bytes(bytes([i])) for i in range(5)]
    told: list[tuple[str, int]] = []
    reports = replicate(depots_of(store), lambda depot, done, left: told.append((depot, done + left.objects)))
    assert [(report.depot, report.entries, report.error) for report in reports] == [
        ("local", 0, None),
        ("b", 5, None),
        ("c", 0, None),
    ]
    assert told == [("b", 5)]
    assert all(directory(store, "b").has(name) for name in names)


def test_a_comparison_finds_what_no_journal_knows(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    first, *others = fill(store, 20)
    delete(directory(store, "b").path(first), Random(0))
    for name in others:
        delete(directory(store, "c").path(name), Random(0))
    directory(store, "local").add_ref("r", 1, first)
    assert note_all(depots_of(store)) == {"local": 0, "b": 2, "c": 20}
    assert note_all(depots_of(store)) == {"local": 0, "b": 0, "c": 0}  # they are noted already
    replicate(depots_of(store))
    assert all(directory(store, name).latest("r") == first for name in NAMES)
    assert note_all(depots_of(store)) == {"local": 0, "b": 0, "c": 0}


def test_a_depot_that_does_not_answer_stays_behind_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = three_depots(tmp_path)
    store.depot.put_bytes(b"weights")
    silence(directory(store, "b"), monkeypatch.setattr)
    report = replicate(depots_of(store))[1]
    assert report.error == "depot b does not answer"
    assert report.left is not None
    assert report.left.objects == 1


def test_damaged_sources_are_not_copied(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    objects = fill(store, 100)
    damage(store, 50, Random(0))
    note_all(depots_of(store))
    replicate(depots_of(store))
    for name, data in objects.items():
        assert any(directory(store, depot).fetch_all(name) == data for depot in NAMES)
