"""A drill says what the loss of a depot would cost, by the reference that needs it."""

import json
from pathlib import Path
from random import Random

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.care.drill import DrillReport, drill
from bushcraft.store.open_depots import as_depots
from bushcraft.store.workspace import Store
from tests.store.three_depots import NAMES, catch_up, delete, depots_of, directory, fill, flip, three_depots


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A reference to a document that names 20 objects."""
    store = three_depots(tmp_path)
    store.depot.publish("list", store.depot.put_bytes(json.dumps(list(fill(store, 20))).encode()))
    catch_up(store)
    return store


def drilled(store: Store, lose: str = "local", n_sample: int | None = None) -> DrillReport:
    return drill(store.root, depots_of(store), lose, n_sample, Random(0))


@pytest.mark.parametrize("lose", NAMES)
def test_any_depot_may_be_lost_when_all_have_everything(store: Store, lose: str) -> None:
    report = drilled(store, lose)
    assert report.losses == []
    assert (report.objects, report.verified) == (21, 21)
    assert report.references == 3


def test_nothing_is_read_from_the_depot_that_is_lost(store: Store) -> None:
    for path in (store.root / "depot" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    assert drilled(store).losses == []


def test_an_object_that_is_only_there_is_named_by_its_reference(store: Store) -> None:
    name = json.loads(store.depot.read(str(store.depot.latest("list"))))[3]
    flip(directory(store, "b").path(name), Random(0))
    delete(directory(store, "c").path(name), Random(0))
    (loss,) = drilled(store).losses
    assert (loss.reference, loss.object) == ("list@1", name)


def test_a_reference_that_is_only_there_is_lost(store: Store) -> None:
    name = store.depot.put_bytes(b"new")
    directory(store, "local").add_ref("r", 1, name)
    (loss,) = drilled(store).losses
    assert (loss.reference, loss.object) == ("r@1", name)
    assert drilled(store, "b").losses == []


def test_a_document_that_is_only_there_is_lost_with_what_it_names(store: Store) -> None:
    name = str(store.depot.latest("list"))
    for depot in ("b", "c"):
        delete(directory(store, depot).path(name), Random(0))
    assert [(loss.reference, loss.object) for loss in drilled(store).losses] == [("list@1", name)]


def test_a_sample_reads_only_so_many(store: Store) -> None:
    report = drilled(store, n_sample=7)
    assert (report.objects, report.verified) == (21, 7)


def test_the_only_depot_and_an_unknown_one_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no depot 'x'\. There are local, b, c"):
        drilled(store, "x")
    alone = Store.create(tmp_path / "alone")
    with pytest.raises(StoreError, match="the only one"):
        drill(alone.root, as_depots(alone.root, alone.depot), "local")
