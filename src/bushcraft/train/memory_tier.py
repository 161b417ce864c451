"""What a run has left in the memory of its nodes, in front of the store, while the run is taken up again.

Each rank reads its own node's memory first, then the others', then the store. A node that was replaced has nothing, and
gets its part from the node that mirrored it. A checkpoint in memory that lost nodes have taken with them is left out;
that it has all its objects is known beforehand, by the lists of them that the nodes exchange.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bushcraft.checkpoint.contents import members, tensor_objects
from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.checkpoint.saver import wait_for_saves
from bushcraft.errors import BushcraftError
from bushcraft.parallel.ranks import Ranks
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.memory import open_memory, read_first, settings_of
from bushcraft.store.nodes.node_memory import NodeMemory
from bushcraft.store.nodes.peer_server import PeerServer
from bushcraft.store.workspace import Store
from bushcraft.train.ring import Nodes

Checkpoint = tuple[int, str]
"""Number and object name of the manifest."""


@dataclass(frozen=True)
class _Memory:
    """What one node has, and where it serves it."""

    address: str
    sizes: Mapping[str, int]
    """Object → bytes."""
    checkpoints: Mapping[Checkpoint, frozenset[str]]
    """The objects of their tensors."""


@contextmanager
def with_memory(store: Store, run: str, nodes: Nodes | None, ranks: Ranks) -> Iterator[Depot]:
    """The store's depot behind the memory of the run's nodes. All ranks enter and leave together, and see the same."""
    memory = open_memory(store.root, run)
    if nodes is None:
        yield read_first(memory, store.depot, store.root)
        return
    with ExitStack() as stack:
        found = ranks.together(lambda: _serve(store, run, memory, nodes, stack) if nodes.acts else None)
        durable = ranks.first(lambda: store.depot.ref_values(f"checkpoints/{run}"))
        others = [
            NodeMemory(other.address, nodes.token, other.sizes) for node in nodes.after() if (other := found[node])
        ]
        for node in others:
            stack.callback(node.close)
        whole = _whole_ones([of_node for of_node in found if of_node is not None])
        yield _OfNodes(store, [*filter(None, [memory]), *others], run, {*whole, *durable})


class _OfNodes(Depots):
    """The store's depots behind these tiers, with the checkpoints of `run` that all ranks have agreed on."""

    def __init__(self, store: Store, tiers: list[Depot], run: str, agreed: set[Checkpoint]) -> None:
        depot = store.depot
        sources = depot.sources if isinstance(depot, Depots) else ()
        super().__init__(members(depot), settings_of(depot), store.root, sources, tiers)
        self._ref, self._agreed = f"checkpoints/{run}", agreed

    def ref_values(self, ref: str) -> list[Checkpoint]:
        return list(self._agreed) if ref == self._ref else super().ref_values(ref)


def _serve(store: Store, run: str, memory: LocalDepot | None, nodes: Nodes, stack: ExitStack) -> _Memory | None:
    """Give the other nodes this one's memory until `stack` is closed; None if it has none, or cannot."""
    wait_for_saves(store.runs / run, lambda _: None)
    if memory is None:
        return None
    try:
        found = dict(memory.objects())
        checkpoints = {
            (number, name): frozenset(tensor_objects(read_manifest(memory, name)))
            for number, name in memory.ref_values(f"checkpoints/{run}")
        }
        server = stack.enter_context(PeerServer(memory, f"{nodes.host}:0", nodes.token))
    except BushcraftError:
        return None
    return _Memory(server.address, found, checkpoints)


def _whole_ones(found: list[_Memory]) -> set[Checkpoint]:
    there = {name for of_node in found for name in of_node.sizes}
    return {checkpoint for of_node in found for checkpoint, objects in of_node.checkpoints.items() if objects <= there}
