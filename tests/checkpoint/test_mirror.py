"""A node's memory takes a checkpoint's part from another node's, verified, in bounded memory, or not at all."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.checkpoint.mirror import Mirror
from bushcraft.checkpoint.mirror_request import InMemory, MirrorRequest
from bushcraft.checkpoint.saver import Saver
from bushcraft.errors import UnreachableError
from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot
from bushcraft.store.memory import MEMORY_VARIABLE, create_memory
from bushcraft.store.nodes.node_memory import NodeMemory
from bushcraft.store.nodes.peer_server import PeerServer
from bushcraft.store.workspace import Store
from bushcraft.train.ring import Nodes, route_to

TOKEN = "the token of this run"
RUN = "mirrored"
LARGE = 9 * 1024 * 1024
"""Bytes of an object that is read in several pieces."""


class Node:
    """A node with a memory depot, its ranks' slots and its mirror."""

    def __init__(self, root: Path, token: str = TOKEN) -> None:
        self.slots = root / "slots"
        self.slots.mkdir(parents=True)
        self.depot = LocalDepot.create(root / "memory", "memory")
        self.room = 1 << 40
        self.mirror = Mirror(self.depot, "127.0.0.1:0", token, lambda: self.room)

    def link(self, data: bytes) -> dict[str, int]:
        """What a rank's saver does with a snapshot."""
        name = object_name(data)
        slot = self.slots / name
        slot.write_bytes(data)
        self.depot.path(name).parent.mkdir(exist_ok=True)
        os.link(slot, self.depot.path(name))
        return {name: len(data)}

    def names(self) -> set[str]:
        return {name for name, _ in self.depot.objects()}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def made(name: str, token: str = TOKEN) -> Node:
            made = Node(tmp_path / name, token)
            stack.callback(made.mirror.close)
            return made

        yield made


def save(number: int, first: Node, here: Node, size: int = 1000, partner: str | None = None) -> MirrorRequest:
    """A concluded save, whose manifest the first node has, and of which both nodes have their parts."""
    manifest = b"manifest %d" % number
    name = first.depot.put_bytes(manifest)
    return MirrorRequest(
        run=RUN,
        position=number,
        checkpoint=InMemory(number, name, {name: len(manifest)}),
        first=first.mirror.address,
        partner=partner or first.mirror.address,
        own=here.link(b"own %d" % number),
        partners=first.link(b"%d" % number * size),
    )


def test_a_mirror_has_the_manifest_and_the_partners_objects(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    request = save(1, first, here, LARGE)
    here.mirror.mirror(request)
    assert here.depot.history(f"checkpoints/{RUN}") == [(1, request.checkpoint.manifest)]
    for name in here.names():
        here.depot.verify(name)
    assert here.names() == {*request.checkpoint.sizes, *request.own, *request.partners}
    assert here.mirror.notes() == ()


def test_one_checkpoint_at_most_is_mirrored_and_what_ranks_have_is_left_alone(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    one, two = save(1, first, here), save(2, first, here)
    here.mirror.mirror(one)
    here.mirror.mirror(two)
    manifests = {one.checkpoint.manifest, two.checkpoint.manifest}
    assert here.names() == {*manifests, *one.own, *two.own, *two.partners}


def test_a_checkpoint_whose_part_a_rank_has_overwritten_is_forgotten(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    one, two = save(1, first, here), save(2, first, here)
    here.mirror.mirror(one)
    here.depot.remove_object(next(iter(one.own)))
    here.mirror.mirror(two)
    assert here.depot.history(f"checkpoints/{RUN}") == [(2, two.checkpoint.manifest)]
    assert one.checkpoint.manifest not in here.names()


def test_a_wrong_token_is_refused(node: Callable[..., Node]) -> None:
    first, stranger = node("first"), node("stranger", "another token")
    request = save(1, first, stranger)
    reader = NodeMemory(first.mirror.address, "another token", request.partners)
    with pytest.raises(UnreachableError, match="does not give"):
        reader.read(next(iter(request.partners)))
    reader.close()
    stranger.mirror.mirror(request)
    assert stranger.names() == set(request.own)
    assert "is not mirrored" in stranger.mirror.notes()[0]


def test_what_no_store_took_does_not_hide_what_a_store_has_taken_since(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    for number in (3, 4):
        here.mirror.mirror(save(number, first, here))
    here.mirror.mirror(durable := save(2, first, here))
    assert here.depot.history(f"checkpoints/{RUN}") == [(2, durable.checkpoint.manifest)]


class Faulty:
    """A partner's memory of which reads go wrong."""

    def __init__(self, depot: LocalDepot, fault: Callable[[bytes], bytes]) -> None:
        self._depot, self._fault = depot, fault

    def size(self, name: str) -> int:
        return self._depot.size(name)

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        data = self._depot.fetch(name, begin, end)
        return self._fault(data) if begin else data


def test_a_lying_partner_is_noticed_and_what_it_gave_is_not_kept(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    with PeerServer(Faulty(first.depot, lambda data: data[:-1] + b"?"), "127.0.0.1:0", TOKEN) as liar:
        request = save(1, first, here, LARGE, liar.address)
        here.mirror.mirror(request)
    assert here.names() == {*request.checkpoint.sizes, *request.own}
    (note,) = here.mirror.notes()
    assert "is corrupted: its bytes do not have the hash of its name" in note
    assert liar.address in note


def test_a_partner_that_dies_while_it_is_mirrored_costs_the_mirror_and_nothing_else(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    before = save(1, first, here)
    here.mirror.mirror(before)

    def die(_: bytes) -> bytes:
        dying.close()
        raise UnreachableError("it is gone", "")

    with ExitStack() as stack:
        dying = PeerServer(Faulty(first.depot, die), "127.0.0.1:0", TOKEN).start()
        request = save(2, first, here, LARGE, dying.address)
        here.mirror.mirror(request)
        stack.pop_all()
    assert set(before.partners) <= here.names(), "the mirror before stays"
    assert not set(request.partners) & here.names()
    assert not list((here.depot.root / "incoming").iterdir())
    assert "is not mirrored" in here.mirror.notes()[0]
    here.mirror.mirror(again := save(3, first, here))
    assert set(again.partners) <= here.names()


def test_without_room_nothing_is_mirrored_which_is_said_once(node: Callable[..., Node]) -> None:
    first, here = node("first"), node("here")
    here.mirror.mirror(save(1, first, here))
    here.room = 0
    two, three = save(2, first, here), save(3, first, here)
    here.mirror.mirror(two)
    here.mirror.mirror(three)
    assert not {*two.partners, *three.partners} & here.names()
    assert three.checkpoint.manifest in here.names()
    assert len(here.mirror.notes()) == 1
    here.room = 1 << 40
    here.mirror.mirror(four := save(4, first, here))
    assert set(four.partners) <= here.names()


def test_a_saver_that_is_started_again_serves_where_the_other_nodes_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, str(tmp_path))
    store = Store.create(tmp_path / "store")
    (store.runs / RUN).mkdir()
    saver = Saver(store, RUN, rank=0, n_snapshots=1)
    address = saver.serve("127.0.0.1", TOKEN)
    assert address is not None
    assert saver._process is not None
    os.kill(saver._process.pid, signal.SIGKILL)
    saver._died()
    saver._connect()
    memory = create_memory(store.root, RUN)
    assert memory is not None
    name = memory.put_bytes(b"bytes")
    reader = NodeMemory(address, TOKEN, {name: 5})
    assert reader.read(name) == b"bytes"
    reader.close()
    saver.close()


@given(st.lists(st.integers(1, 4), min_size=2, max_size=9))
def test_each_node_is_mirrored_by_exactly_one_other(ranks_of_nodes: list[int]) -> None:
    of_rank = tuple(sum(ranks_of_nodes[:node]) for node, n in enumerate(ranks_of_nodes) for _ in range(n))
    seen = [Nodes(of_rank, node, "127.0.0.1", TOKEN) for node in sorted(set(of_rank))]
    assert all(nodes.acts for nodes in seen)
    assert sorted(nodes.before for nodes in seen) == seen[0].all
    for nodes in seen:
        assert nodes.before != nodes.own
        mirrored_by = next(other.own for other in seen if other.before == nodes.own)
        assert nodes.after()[0] == mirrored_by, "asked first for what it has lost"


def test_the_way_to_this_node_and_to_nowhere_is_its_loopback() -> None:
    assert route_to("127.0.0.1") == "127.0.0.1"
    assert route_to("no-such-host.invalid") == "127.0.0.1"
