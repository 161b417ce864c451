"""Every format version that was ever released opens, verifies and means what it meant."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from bushcraft.checkpoint.newest import checkpoints, newest, verify
from bushcraft.data.manifest import PackTable, read_manifest
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.pack import PackReader, verify_pack
from bushcraft.store.workspace import Store
from bushcraft.train.load_model import load_model
from bushcraft.train.open_data import open_datasets, open_loader
from bushcraft.train.receipt import EMPTY, extend, receipts
from bushcraft.train.run_record import read_record

FIXTURES = sorted(Path(__file__).parent.glob("store-v*"))


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name)
def fixture_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    shutil.copytree(request.param, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_there_is_a_fixture_of_version_1() -> None:
    assert [path.name for path in FIXTURES][:1] == ["store-v1"]


def test_packs_and_their_manifest_open(fixture_store: Store) -> None:
    depot = fixture_store.depot
    _, manifest = read_manifest(depot, "python")
    table = PackTable(depot, manifest.splits["train"])
    documents = list(PackReader(depot, table[0]).documents())
    assert [name for name, _, _ in documents] == [f"train-{n}" for n in range(20)]
    assert documents[3][1][0] == manifest.separator_id
    assert len(documents[3][1]) == documents[3][2] + 1  # a token a byte, and the separator
    verify_pack(depot, table[0])


def test_ledger_opens_and_its_receipts_are_made_again_from_the_data(fixture_store: Store) -> None:
    events = read_ledger(fixture_store.runs / "fixture", "fixture")
    record = read_record(events, "fixture")
    datasets = open_datasets(fixture_store, record.recipe, record.datasets)
    loader = open_loader(fixture_store, record.recipe, record, datasets, events)
    receipt, position = EMPTY, 0
    for position_after, expected in sorted(receipts(events).items()):
        rows = loader.rows(position, position_after)
        receipt = extend(receipt, position, position_after, rows.digest() if record.receipts == 1 else rows.digests())
        assert receipt == expected, f"the order, the packing or the receipt changed before position {position_after}"
        position = position_after
    assert position == 32


def test_checkpoints_open_and_every_byte_verifies(fixture_store: Store) -> None:
    saved = checkpoints(fixture_store.depot, "fixture")
    assert [verify(fixture_store.depot, name)[0].position for _, name in saved] == [32, 16]
    found = newest(fixture_store.depot, "fixture", lambda *_: None)
    assert found is not None
    assert found[1].optimizer == {"step": 4.0}


def test_model_loads_and_speaks(fixture_store: Store) -> None:
    model, _ = load_model(fixture_store, "fixture")
    text = "".join(model.continuation("train", 5, temperature=0, top_p=1, seed=0))
    assert isinstance(text, str)
    assert np.isfinite(model.model.unembedding_VD.detach().numpy()).all()
