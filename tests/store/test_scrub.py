"""A scrub finds exactly what is damaged, mends it from good copies, and says what is lost."""

from pathlib import Path
from random import Random

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.care.scrub import Budget, ScrubReport, check, scrub
from bushcraft.store.depots import Depots
from bushcraft.store.lag import Late
from bushcraft.store.open_depots import as_depots
from bushcraft.store.workspace import Store
from tests.store.three_depots import NAMES, damage, delete, depots_of, directory, fill, flip, silence, three_depots


def scrubbed(store: Store, **options: object) -> ScrubReport:
    return scrub(store.root, depots_of(store), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_after_100_random_damages_everything_reads_back_and_the_report_counts_100(tmp_path: Path, seed: int) -> None:
    store = three_depots(tmp_path)
    objects = fill(store, 300, seed)
    values = {ref: store.depot.history(ref) for ref in store.depot.refs()}
    assert damage(store, 100, Random(seed)) == 100
    report = scrubbed(store)
    assert report.damages == 100
    assert sum(depot.repaired for depot in report.depots) == 100
    assert report.is_well
    assert report.finished
    for name in NAMES:
        depot = directory(store, name)
        assert {name: depot.read(name) for name in objects} == objects
        assert {ref: depot.history(ref) for ref in depot.refs()} == values
    assert scrubbed(store).damages == 0


def test_what_is_bad_everywhere_is_lost_and_named(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 5)))
    for depot in NAMES:
        flip(directory(store, depot).path(name), Random(0))
    report = scrubbed(store)
    assert report.lost == [name]
    assert not report.is_well
    assert [depot.corrupt for depot in report.depots] == [1, 1, 1]


def test_a_depot_alone_is_scrubbed_and_what_is_bad_is_lost(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    name = store.depot.put_bytes(b"weights")
    report = scrub(tmp_path, as_depots(tmp_path, store.depot))
    assert (report.depots[0].checked, report.depots[0].bytes, report.damages) == (1, 7, 0)
    directory_path = tmp_path / "depot" / "objects" / name[:2] / name[2:]
    directory_path.write_bytes(b"wei9hts")
    assert scrub(tmp_path, as_depots(tmp_path, store.depot)).lost == [name]


def test_what_is_on_its_way_is_late_and_no_damage(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = store.depot.put_bytes(b"weights")
    report = {depot.depot: depot for depot in scrubbed(store).depots}
    assert (report["b"].late, report["b"].missing) == (1, 0)
    assert not directory(store, "b").has(name)


def test_a_late_reference_is_no_damage(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 1)))
    for depot in ("local", "c"):
        directory(store, depot).add_ref("r", 1, name)
    depots_of(store).lags["b"].add(Late(name, 0, 0.0, "r", 1))
    assert scrubbed(store).damages == 0


def test_a_marker_is_written_anew(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    (tmp_path / "b" / "depot.json").write_bytes(b"{")
    (tmp_path / "c" / "depot.json").unlink()
    report = scrubbed(store)
    assert [depot.markers for depot in report.depots] == [0, 1, 1]
    assert scrubbed(store).damages == 0


def test_a_directory_that_is_not_mounted_is_left_out_and_not_filled(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 5)
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "b").mkdir()
    report = scrubbed(store)
    assert "is not a depot" in str(report.depots[1].error)
    assert report.depots[1].missing == 0
    assert list((tmp_path / "b").iterdir()) == []
    assert not report.is_well


def test_nothing_is_called_lost_while_a_depot_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 5)))
    for depot in ("local", "b"):
        flip(directory(store, depot).path(name), Random(0))
    silence(directory(store, "c"), monkeypatch.setattr)
    report = scrubbed(store)
    assert report.lost == []
    assert [depot.not_repaired for depot in report.depots] == [[name], [name], []]
    assert report.depots[2].error is not None


def test_a_budget_is_kept_and_the_next_one_goes_on(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 300)
    reports = [scrubbed(store, budget=Budget(bytes=1))]
    while not reports[-1].finished and len(reports) <= 300:
        reports.append(scrubbed(store, budget=Budget(bytes=1)))
    assert sum(depot.checked for report in reports for depot in report.depots) == 3 * 300
    assert len(reports) > 10
    assert sum(depot.checked for depot in scrubbed(store).depots) == 3 * 300  # it began anew


def test_one_depot_is_scrubbed_by_itself(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 5)))
    for depot in ("b", "c"):
        delete(directory(store, depot).path(name), Random(0))
    report = scrubbed(store, only="b")
    assert [(depot.depot, depot.repaired) for depot in report.depots] == [("b", 1)]
    assert not directory(store, "c").has(name)
    with pytest.raises(StoreError, match="no depot 'x'"):
        scrubbed(store, only="x")


def test_a_check_mends_nothing(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    name = next(iter(fill(store, 5)))
    delete(directory(store, "b").path(name), Random(0))
    report = check(depots_of(store), [name])
    assert [depot.missing for depot in report.depots] == [0, 1, 0]
    assert not report.is_well
    assert not directory(store, "b").has(name)


def test_a_cursor_that_is_damaged_is_a_scrub_from_the_start(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 5)
    (tmp_path / "scrub.json").write_text('{"all": "zz"}')
    assert sum(depot.checked for depot in scrubbed(store).depots) == 15


def test_a_store_that_is_opened_anew_has_its_depots(tmp_path: Path) -> None:
    objects = fill(three_depots(tmp_path), 5)
    again = Store.open(tmp_path)
    assert isinstance(again.depot, Depots)
    assert {name: again.depot.read(name) for name in objects} == objects


def test_what_a_partial_depot_lacks_is_no_damage(tmp_path: Path) -> None:
    store = three_depots(tmp_path)
    fill(store, 20, 0)
    depots = depots_of(store)
    partial = tuple(one.model_copy(update={"complete": one.name != "b"}) for one in depots.settings.depots)
    for name, _ in list(directory(store, "b").objects()):
        directory(store, "b").remove_object(name)
    settings = depots.settings.model_copy(update={"depots": partial})
    report = scrub(store.root, Depots(depots.members, settings, store.root))
    assert report.damages == 0
    assert list(directory(store, "b").objects()) == []
