"""A node is lost with its memory: the run goes on from what its partner has mirrored, or from the newest durable."""

from pathlib import Path

import pytest

from bushcraft.checkpoint.newest import checkpoints
from bushcraft.store.workspace import Store
from tests.train.nodes import EVERY, Cluster, Crash, Found

CRASH = Crash(position=2 * EVERY + 24, unwritable_from=8)


def mend(store: Store) -> None:
    incoming = store.root / "depot" / "incoming"
    incoming.unlink()
    incoming.mkdir()


@pytest.fixture(scope="module")
def undisturbed(text_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return Cluster(text_store, "two-nodes", 2, tmp_path_factory.mktemp("memories")).train()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_goes_on_from_its_partners_memory_where_the_disk_took_nothing(
    text_store: Store, tmp_path: Path, undisturbed: Found, lost: int
) -> None:
    cluster = Cluster(text_store, f"lost-node-{lost}", 2, tmp_path)
    cluster.train(CRASH)
    mend(text_store)
    assert checkpoints(text_store.depot, cluster.name) == []
    cluster.lose(lost)
    found = cluster.train()
    assert found.opened.position == 2 * EVERY
    assert undisturbed.closed is not None
    assert found.closed == undisturbed.closed, "bit-identical"
    assert not [event for event in found.events if "unusable" in event.data]
    assert not list(cluster.memory(lost).rglob("*/objects")), "a run that ends well gives its memory back"
