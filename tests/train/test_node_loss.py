"""A node is lost with its memory: the run goes on from what its partner has mirrored, or from the newest durable."""

from pathlib import Path

import pytest

from bushcraft.checkpoint.newest import checkpoints
from bushcraft.store.workspace import Store
from tests.train.nodes import EVERY, Cluster, Crash, Found

FIRST, NEWEST = EVERY, 2 * EVERY
NOTHING_DURABLE = Crash(position=NEWEST + 24, unwritable_from=8)
FIRST_DURABLE = Crash(position=NEWEST + 24, unwritable_from=EVERY + 8)


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
    cluster.train(NOTHING_DURABLE)
    mend(text_store)
    assert checkpoints(text_store.depot, cluster.name) == []
    cluster.lose(lost)
    found = cluster.train()
    assert found.opened.position == NEWEST
    assert undisturbed.closed is not None
    assert found.closed == undisturbed.closed, "bit-identical"
    assert not [event for event in found.events if "unusable" in event.data]
    assert not list(cluster.memory(lost).rglob("*/objects")), "a run that ends well gives its memory back"


@pytest.mark.slow
def test_two_neighbours_that_are_lost_take_the_newest_checkpoint_with_them_in_silence(
    text_store: Store, tmp_path: Path
) -> None:
    cluster = Cluster(text_store, "lost-neighbours", 3, tmp_path)
    cluster.train(FIRST_DURABLE)
    mend(text_store)
    cluster.lose(1)
    cluster.lose(2)
    found = cluster.train()
    assert found.opened.position == FIRST
    assert not [event for event in found.events if "unusable" in event.data]
    assert found.events[-1].type == "finished"


@pytest.mark.slow
def test_wrong_bytes_of_a_partner_are_noticed_and_an_older_checkpoint_serves(text_store: Store, tmp_path: Path) -> None:
    cluster = Cluster(text_store, "lying-partner", 2, tmp_path, ranks_per_node=2)
    cluster.train(FIRST_DURABLE)
    mend(text_store)
    mirror = cluster.depot(0)
    objects = [name for name, _ in cluster.depot(1).objects() if cluster.depot(1).path(name).stat().st_nlink > 1]
    damaged = [mirror.path(name) for name in objects if mirror.has(name)]
    assert damaged
    for path in damaged:
        path.write_bytes(bytes(path.stat().st_size))
    cluster.lose(1)
    found = cluster.train()
    assert found.opened.position == FIRST
    unusable = [event.data["unusable"] for event in found.events if "unusable" in event.data]
    assert len(unusable) == 1
    assert f"the checkpoint of position {FIRST} is whole" in unusable[0]
