"""Nothing is deleted but what was unreachable, is so still after the grace, and beside which all else is safe."""

import fcntl
import json
from pathlib import Path
from random import Random

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.care.gc import TOMBSTONES, Plan, mark, plan, retire, sweep
from bushcraft.store.open_depots import as_depots
from bushcraft.store.settings import GcSettings, StoreSettings, write_settings
from bushcraft.store.workspace import Store
from tests.store.three_depots import NAMES, catch_up, delete, depots_of, directory, fill, flip, silence, three_depots

DAY = 24 * 3600.0
NOW = 1e9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two objects that a reference keeps, and two that nothing keeps."""
    store = three_depots(tmp_path)
    for data in (b"kept 1", b"kept 2"):
        store.depot.publish("r", store.depot.put_bytes(data))
    for data in (b"garbage 1", b"garbage 2"):
        store.depot.put_bytes(data)
    catch_up(store)
    return store


def planned(store: Store, now: float = NOW) -> Plan:
    return plan(store.root, depots_of(store), now)


def marked(store: Store, now: float = NOW) -> Plan:
    found = planned(store, now)
    mark(depots_of(store), found)
    return found


def contents(store: Store) -> set[bytes]:
    """What all depots have."""
    in_each = [{depot.read(name) for name, _ in depot.objects()} for depot in (directory(store, n) for n in NAMES)]
    assert in_each[0] == in_each[1] == in_each[2]
    return in_each[0]


def test_what_is_unreachable_is_deleted_after_its_grace_and_nothing_else(store: Store) -> None:
    assert len(marked(store).tombstones) == 2
    assert planned(store, NOW + 6.9 * DAY).due == []
    late = planned(store, NOW + 7 * DAY)
    assert len(late.due) == 2
    assert sweep(store.root, depots_of(store), late) == 2
    assert {b for b in contents(store) if b"tombstones" not in b} == {b"kept 1", b"kept 2"}


def test_marking_deletes_nothing_and_is_noted_in_every_depot(store: Store) -> None:
    marked(store)
    assert len(contents(store)) == 5
    for name in NAMES:
        depot = directory(store, name)
        document = json.loads(depot.read(str(depot.latest(TOMBSTONES))))
        assert set(document["objects"].values()) == {NOW}


def test_marking_again_keeps_the_first_time_and_writes_nothing_new(store: Store) -> None:
    marked(store)
    assert set(marked(store, NOW + DAY).tombstones.values()) == {NOW}
    assert len(store.depot.history(TOMBSTONES)) == 1


def test_what_is_referred_to_again_is_kept(store: Store) -> None:
    marked(store)
    store.depot.publish("r", store.depot.put_bytes(b"garbage 1"))
    catch_up(store)
    late = planned(store, NOW + 8 * DAY)
    assert sweep(store.root, depots_of(store), late) == 1
    assert b"garbage 1" in contents(store)


def test_what_is_referred_to_between_plan_and_sweep_is_kept(store: Store) -> None:
    marked(store)
    late = planned(store, NOW + 8 * DAY)
    store.depot.publish("r", store.depot.put_bytes(b"garbage 1"))
    catch_up(store)
    assert sweep(store.root, depots_of(store), late) == 1
    assert b"garbage 1" in contents(store)


def test_what_was_never_marked_is_not_deleted_without_any_grace(tmp_path: Path) -> None:
    store = three_depots(tmp_path, grace_days=0)
    store.depot.put_bytes(b"garbage")
    catch_up(store)
    assert planned(store).due == []


def test_what_is_in_progress_is_kept(store: Store) -> None:
    name = store.depot.put_bytes(b"garbage 1")
    catch_up(store)
    (store.builds / "7").mkdir()
    (store.builds / "7" / "journal.jsonl").write_text(json.dumps({"pack": name}))
    (store.runs / "x").mkdir()
    (store.runs / "x" / "ledger.jsonl").write_text(store.depot.put_bytes(b"garbage 2"))
    catch_up(store)
    assert [len(found) for found in (planned(store).tombstones, marked(store).tombstones)] == [1, 1]


def test_retired_values_lose_their_objects_after_a_grace_of_their_own(store: Store) -> None:
    shared = store.depot.put_bytes(b"garbage 1")
    catch_up(store)
    marked(store)
    store.depot.publish("r", shared)
    store.depot.publish("r", store.depot.put_bytes(b"newest"))
    catch_up(store)
    gone = retire(depots_of(store), "r", lambda number, _: number == 1)
    assert [number for number, _ in gone] == [3, 2]
    assert [number for number, _ in store.depot.history("r")] == [4, 1]
    assert shared not in planned(store, NOW + 8 * DAY).due
    marked(store, NOW + 8 * DAY)
    assert shared in planned(store, NOW + 15 * DAY).due


def test_the_newest_value_is_never_retired(store: Store) -> None:
    retire(depots_of(store), "r", lambda *_: False)
    assert [number for number, _ in store.depot.history("r")] == [2]


def test_tombstones_do_not_pile_up(store: Store) -> None:
    marked(store)
    sweep(store.root, depots_of(store), planned(store, NOW + 8 * DAY))
    sizes = []
    for day in range(9, 90, 8):
        store.depot.put_bytes(f"garbage of day {day}".encode())
        catch_up(store)
        marked(store, NOW + day * DAY)
        sweep(store.root, depots_of(store), planned(store, NOW + day * DAY))
        sizes.append(len(contents(store)))
    assert max(sizes[3:]) <= max(sizes[:3]) + 1


# What it refuses


def due(store: Store) -> Plan:
    marked(store)
    return planned(store, NOW + 8 * DAY)


def refused(store: Store, match: str, late: Plan | None = None) -> None:
    before = {name: [n for n, _ in directory(store, name).objects()] for name in NAMES}
    with pytest.raises(StoreError, match=match):
        sweep(store.root, depots_of(store), late or planned(store, NOW + 8 * DAY))
    assert {name: [n for n, _ in directory(store, name).objects()] for name in NAMES} == before


def test_it_is_off_unless_the_settings_say_so(tmp_path: Path) -> None:
    store = three_depots(tmp_path, gc=False)
    refused(store, "gc is off in this store")


def test_a_depot_that_is_behind_is_refused(store: Store) -> None:
    store.depot.put_bytes(b"more")
    refused(store, "depot b is behind")
    with pytest.raises(StoreError, match="depot b is behind"):
        retire(depots_of(store), "r", lambda *_: False)


@pytest.mark.parametrize("name", NAMES)
def test_a_depot_that_cannot_be_listed_is_refused(store: Store, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        silence(directory(store, name), patch.setattr)
        with pytest.raises(StoreError, match=f"depot {name} cannot be listed"):
            planned(store)
        with pytest.raises(StoreError, match=f"depot {name} cannot be listed"):
            retire(depots_of(store), "r", lambda *_: False)
    assert len(store.depot.history("r")) == 2


def test_a_document_that_is_lost_is_refused_because_what_it_keeps_is_not_known(store: Store) -> None:
    name = str(store.depot.latest("r"))
    for depot in NAMES:
        delete(directory(store, depot).path(name), Random(0))
    refused(store, "what r@2 keeps is not known")


def test_a_format_that_is_unknown_is_refused(store: Store) -> None:
    store.depot.publish("s", store.depot.put_bytes(b'{"format": "bushcraft-future"}'))
    catch_up(store)
    refused(store, "format bushcraft-future, which is unknown")


@pytest.mark.parametrize("bad", [("b", "c"), ("c",)], ids=["one copy", "none at another provider"])
def test_too_few_good_copies_of_what_is_kept_are_refused(store: Store, bad: tuple[str, ...]) -> None:
    late = due(store)
    name = str(store.depot.latest("r"))
    for depot in bad:
        flip(directory(store, depot).path(name), Random(0))
    refused(store, f"object {name}, which r@2 keeps, has good copies in", late)


def test_a_second_provider_is_needed_whatever_the_policy(tmp_path: Path) -> None:
    store = three_depots(tmp_path, copies=1, off_provider=0)
    name = store.depot.put_bytes(b"kept")
    store.depot.publish("r", name)
    store.depot.put_bytes(b"garbage")
    catch_up(store)
    late = due(store)
    flip(directory(store, "c").path(name), Random(0))
    refused(store, "has good copies in b, local, and needs two, at two providers", late)


def test_copies_that_the_policy_wants_beyond_two_are_needed(tmp_path: Path) -> None:
    store = three_depots(tmp_path, copies=3)
    name = store.depot.put_bytes(b"kept")
    store.depot.publish("r", name)
    store.depot.put_bytes(b"garbage")
    catch_up(store)
    late = due(store)
    flip(directory(store, "b").path(name), Random(0))
    refused(store, "has good copies in c, local, and needs", late)


def test_a_run_that_is_going_on_is_refused(store: Store) -> None:
    late = due(store)
    (store.runs / "x").mkdir()
    with (store.runs / "x" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(store, "run 'x' is going on", late)
    assert sweep(store.root, depots_of(store), late) == 2


def test_a_single_depot_is_refused_unless_one_copy_is_accepted(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    write_settings(tmp_path, StoreSettings(gc=GcSettings(enabled=True, grace_days=0)))
    depots = as_depots(tmp_path, Store.open(tmp_path).depot)
    depots.publish("r", depots.put_bytes(b"kept"))
    depots.put_bytes(b"garbage")
    mark(depots, plan(tmp_path, depots, NOW))
    late = plan(tmp_path, depots, NOW + 1)
    with pytest.raises(StoreError, match="a single depot"):
        sweep(tmp_path, depots, late)
    assert sweep(tmp_path, depots, late, allow_single_copy=True) == 1
    assert store.depot.latest("r") is not None


def test_with_one_copy_accepted_a_damaged_one_is_refused_still(tmp_path: Path) -> None:
    Store.create(tmp_path)
    write_settings(tmp_path, StoreSettings(gc=GcSettings(enabled=True, grace_days=0)))
    depots = as_depots(tmp_path, Store.open(tmp_path).depot)
    depots.put_bytes(b"garbage")
    name = depots.put_bytes(b'{"other": "' + depots.put_bytes(b"data").encode() + b'"}')
    depots.publish("r", name)
    mark(depots, plan(tmp_path, depots, NOW))
    late = plan(tmp_path, depots, NOW + 1)
    directory = tmp_path / "depot" / "objects"
    path = next(p for p in directory.rglob("*") if p.is_file() and p.read_bytes() == b"data")
    path.write_bytes(b"dada")
    with pytest.raises(StoreError, match="no good copy"):
        sweep(tmp_path, depots, late, allow_single_copy=True)


def test_many_objects_are_planned_alike(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    objects = fill(store, 60)
    kept = {name for ref in store.depot.refs() for _, name in store.depot.history(ref)}
    assert set(planned(store).tombstones) == set(objects) - kept
