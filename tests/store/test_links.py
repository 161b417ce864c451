"""What a reference keeps: all that its documents name, as the rooms that wrote them read them."""

import importlib
import json
from typing import Any

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot, object_name
from bushcraft.store.links import Closure, Links, closure, links_of, register, roots_of
from bushcraft.store.workspace import Store
from tests.conftest import random_documents, write_dataset

for room in ("ledger", "data", "checkpoint"):
    importlib.import_module(f"bushcraft.{room}.links")


def put(depot: Depot, document: Any) -> str:
    return depot.put_bytes(json.dumps(document).encode())


def kept_by(depot: Depot, name: str) -> set[str]:
    return set(closure(depot, [("root", name)]))


@pytest.fixture
def depot(store: Store) -> Depot:
    return store.depot


def test_a_data_set_keeps_its_packs_and_tables(depot: Depot) -> None:
    documents = list(random_documents(seed=1, n_documents=30))
    write_dataset(depot, "d", [documents[:10], documents[10:20]], documents[20:])
    assert kept_by(depot, str(depot.latest("datasets/d"))) == {name for name, _ in depot.objects()}


def test_a_checkpoint_keeps_tensors_ledger_code_and_data_sets(depot: Depot) -> None:
    documents = list(random_documents(seed=1, n_documents=10))
    write_dataset(depot, "d", [documents[:5]], documents[5:])
    events, tensor, code = (depot.put_bytes(data) for data in (b"events", b"tensor", b"code"))
    ledger = put(depot, {"format": "bushcraft-ledger", "segments": [{"object": events, "events": 1}]})
    chunk = {"object": tensor, "begin": 0, "end": 6}
    manifest = put(
        depot,
        {
            "format": "bushcraft-checkpoint",
            "ledger": ledger,
            "code": code,
            "datasets": {"a": depot.latest("datasets/d")},
            "tensors": {"model/w": {"chunks": [chunk]}},
            "receipt": "ab" * 32,
        },
    )
    evaluation = put(depot, {"format": "bushcraft-evaluation", "checkpoint": manifest})
    assert kept_by(depot, evaluation) == {name for name, _ in depot.objects()}


def test_a_folder_keeps_its_files(depot: Depot) -> None:
    file = depot.put_bytes(b"file")
    folder = put(depot, {"format": "bushcraft-folder", "version": 1, "files": [{"path": "a", "object": file}]})
    assert kept_by(depot, folder) == {folder, file}


def test_an_unknown_document_keeps_whatever_it_names_that_is_there(depot: Depot) -> None:
    deep = depot.put_bytes(b"deep")
    inner = put(depot, [{"x": f"see {deep}."}])
    outer = put(depot, {"format": "theirs", "a": inner, "absent": "cd" * 32, "longer": f"{deep}00"})
    assert kept_by(depot, outer) == {outer, inner, deep}


@pytest.mark.parametrize("data", [b"plain", b"", b"{ no json", b"[1, 2]", b'"text"'])
def test_other_bytes_keep_nothing(depot: Depot, data: bytes) -> None:
    name = depot.put_bytes(data)
    assert kept_by(depot, name) == {name}


def test_a_format_of_ours_that_is_unknown_is_no_guess(depot: Depot) -> None:
    name = put(depot, {"format": "bushcraft-future"})
    with pytest.raises(StoreError, match="bushcraft-future, which is unknown here"):
        links_of(depot, name)
    assert list(closure(depot, [("r@1", name)]).broken) == [name]


def test_what_is_missing_is_told_by_the_root_that_needs_it(depot: Depot) -> None:
    absent = object_name(b"absent")
    register("test-strict", lambda document, _: Links(documents=[document["of"]]))
    name = put(depot, {"format": "test-strict", "of": absent})
    depot.publish("r", name)
    found = closure(depot, roots_of(depot))
    assert list(found.broken) == [absent]
    assert found.root(absent) == "r@1"


def test_data_of_one_document_that_is_a_document_of_another_is_followed(depot: Depot) -> None:
    leaf = depot.put_bytes(b"leaf")
    inner = put(depot, {"of": leaf})
    register("test-data", lambda document, _: Links(data=[document["of"]]))
    found = Closure()
    found.add(depot, "a", put(depot, {"format": "test-data", "of": inner}))
    assert leaf not in found
    found.add(depot, "b", put(depot, {"of": inner}))
    assert leaf in found
    assert found.root(inner) == "a"


def test_documents_that_name_each_other_end(depot: Depot) -> None:
    register("test-self", lambda document, _: Links(documents=document["of"]))
    one = put(depot, {"format": "test-self", "of": []})
    other = put(depot, {"format": "test-self", "of": [one, one]})
    assert kept_by(depot, other) == {one, other}


def test_every_value_of_a_reference_is_a_root(depot: Depot) -> None:
    names = [depot.put_bytes(bytes([i])) for i in range(3)]
    for name in names:
        depot.publish("r", name)
    assert sorted(roots_of(depot)) == [("r@1", names[0]), ("r@2", names[1]), ("r@3", names[2])]
