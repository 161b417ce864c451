"""How a store stands is told in a bounded time, exactly where it is small and within a few percent where it is not."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from bushcraft.store.care.sample import estimate, sample
from bushcraft.store.care.status import status
from bushcraft.store.local import LocalDepot
from tests.store.three_depots import damage, delete, depots_of, directory, fill, flip, silence, three_depots


class Listed(LocalDepot):
    """So many objects, of which only the names and sizes are there; counts those that were asked for."""

    def __init__(self, n: int) -> None:
        super().__init__(Path("nowhere"))
        self.names = sorted(blake3(str(i).encode()).hexdigest() for i in range(n))
        self.n_listed = 0

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for name in self.names:
            if name.startswith(prefix):
                self.n_listed += 1
                yield name, 100 + int(name[40:42], 16)


def test_few_objects_are_counted(tmp_path: Path) -> None:
    objects = fill(three_depots(tmp_path), 20)
    found = estimate(LocalDepot(tmp_path / "depot"))
    assert (found.objects, found.bytes, found.exact) == (20, sum(map(len, objects.values())), True)


def test_many_are_estimated_from_the_first_names() -> None:
    depot = Listed(100_000)
    found = estimate(depot, 10_000)
    assert not found.exact
    assert abs(found.objects / 100_000 - 1) < 0.04
    assert abs(found.bytes / (100_000 * 227.5) - 1) < 0.04
    assert depot.n_listed <= 10_001


@pytest.mark.parametrize("n", [0, 1, 5, 200, 3000])
def test_a_sample_has_as_many_as_there_are_and_none_twice(n: int) -> None:
    depot = Listed(n)
    for wanted in (1, 10, 300):
        found = sample(depot, wanted, Random(0))
        assert len(set(found)) == len(found) == min(n, wanted)
        assert set(found) <= set(depot.names)


def test_a_sample_is_fair() -> None:
    depot = Listed(400)
    counts = dict.fromkeys(depot.names, 0)
    for seed in range(300):
        for name in sample(depot, 40, Random(seed)):
            counts[name] += 1
    assert min(counts.values()) > 0
    assert max(counts.values()) < 90  # 30 are expected


def test_a_healthy_store_says_so(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 20)
    found = status(tmp_path, depots_of(store))
    assert [(depot.name, depot.provider, depot.error) for depot in found.depots] == [
        ("local", "here", None),
        ("b", "here", None),
        ("c", "there", None),
    ]
    assert [depot.refs_behind for depot in found.depots] == [0, 0, 0]
    assert (found.sampled, found.below_policy, found.policy_kept) == (20, 0, True)


def test_lag_repairs_and_references_that_are_behind_are_told(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 5)))
    flip(directory(store, "local").path(name), Random(0))
    store.depot.read(name)
    depots_of(store).background.wait()
    store.depot.put_bytes(b"more")
    directory(store, "local").add_ref("r", 1, name)
    local, b, c = status(tmp_path, depots_of(store)).depots
    assert (local.repairs, local.lag.objects, local.refs_behind) == (1, 0, 0)
    assert (b.repairs, b.lag.objects, b.lag.bytes, b.refs_behind) == (0, 1, 4, 1)
    assert c.refs_behind == 1


def test_objects_below_the_policy_are_counted(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    first, second, third, *_ = fill(store, 20)
    delete(directory(store, "b").path(first), Random(0))  # two are left, at two providers
    delete(directory(store, "c").path(second), Random(0))  # none is left at the other provider
    delete(directory(store, "local").path(third), Random(0))
    delete(directory(store, "b").path(third), Random(0))
    found = status(tmp_path, depots_of(store))
    assert (found.sampled, found.below_policy) == (20, 2)


def test_only_names_that_all_depots_listed_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.store.care.status.estimate", partial(estimate, enough=10))
    store = three_depots(tmp_path)
    first, *_ = sorted(fill(store, 30))
    delete(directory(store, "c").path(first), Random(0))  # so that it lists one name further than the others
    found = status(tmp_path, depots_of(store))
    assert (found.sampled, found.below_policy) == (10, 1)


def test_a_depot_that_does_not_answer_is_told_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = three_depots(tmp_path)
    fill(store, 5)
    silence(directory(store, "c"), monkeypatch.setattr)
    local, _, c = status(tmp_path, depots_of(store)).depots
    assert c.error == "depot c does not answer"
    assert local.size is not None
    assert local.size.objects == 5


def test_a_depot_that_hangs_costs_no_more_than_the_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = three_depots(tmp_path)
    released = threading.Event()

    def hang() -> Iterator[tuple[str, int]]:
        released.wait()
        return iter(())

    monkeypatch.setattr(directory(store, "c"), "objects", hang)
    found = status(tmp_path, depots_of(store), patience=0.05)
    released.set()
    assert found.depots[2].error == "no answer in 0.05 s"


def test_a_damaged_store_is_still_shown(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 100)
    damage(store, 50, Random(0))
    os.truncate(tmp_path / "c" / "depot.json", 0)
    (tmp_path / "repairs.jsonl").write_text('{"depot"\n')
    assert all(depot.error is None for depot in status(tmp_path, depots_of(store)).depots)
