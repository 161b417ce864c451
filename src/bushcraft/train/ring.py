"""The nodes of a run as a ring in which each mirrors the memory of the one before it, so that one of two may be lost.

A node's ranks follow each other, and its first rank acts for it.
"""

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.mirror_request import InMemory, MirrorRequest
from bushcraft.checkpoint.saver import Saver
from bushcraft.checkpoint.saver_process import Written
from bushcraft.parallel.ranks import Ranks
from bushcraft.parallel.world import World
from bushcraft.store.nodes.peers import TOKEN_VARIABLE

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run, seen from one of its ranks."""

    of_rank: tuple[int, ...]
    """Rank → the first rank of its node."""
    rank: int
    host: str
    """By which other nodes reach this one."""
    token: str
    """With which they may read its memory."""

    @property
    def all(self) -> list[int]:
        """Each node by its first rank."""
        return sorted(set(self.of_rank))

    @property
    def own(self) -> int:
        return self.of_rank[self.rank]

    @property
    def acts(self) -> bool:
        """Whether this rank acts for its node."""
        return self.own == self.rank

    @property
    def before(self) -> int:
        """The node whose memory is mirrored here."""
        return self.all[self.all.index(self.own) - 1]

    def after(self) -> list[int]:
        """The other nodes in the order in which they may have what this one has lost."""
        here = self.all.index(self.own)
        return self.all[here + 1 :] + self.all[:here]


class Ring:
    """Has this node's saver mirror the node before it. `addresses` are the servers, by the nodes' first ranks."""

    def __init__(self, nodes: Nodes, addresses: dict[int, str | None]) -> None:
        self._nodes, self._addresses = nodes, addresses

    def mirror(
        self, saver: Saver, manifest: CheckpointManifest, written: Sequence[Written], checkpoint: InMemory
    ) -> None:
        """A save has been concluded: it is mirrored beside the steps. `written` is by rank."""
        first, partner = self._addresses[self._nodes.all[0]], self._addresses[self._nodes.before]
        if self._nodes.acts and first is not None and partner is not None:
            saver.mirror(
                MirrorRequest(
                    run=manifest.run,
                    position=manifest.position,
                    checkpoint=checkpoint,
                    first=first,
                    partner=partner,
                    own=self._linked(written, self._nodes.own),
                    partners=self._linked(written, self._nodes.before),
                )
            )

    def _linked(self, written: Sequence[Written], node: int) -> dict[str, int]:
        return {
            name: size
            for of_node, of_rank in zip(self._nodes.of_rank, written, strict=True)
            if of_node == node
            for name, size in of_rank.linked.items()
        }


def find_nodes(world: World | None, ranks: Ranks) -> Nodes | None:
    """The nodes of the run, the same on all ranks; None if there is only one."""
    if world is None or ranks.world_size == ranks.local_world_size:
        return None
    found = ranks.gathered((ranks.rank - ranks.local_rank, route_to(world.address)))
    host = found[ranks.rank][1]
    if _is_loopback(host):  # the first node may know itself by such an address
        host = next((route_to(other) for _, other in found if not _is_loopback(other)), host)
    token = ranks.first(lambda: os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(32))
    return Nodes(tuple(node for node, _ in found), ranks.rank, f"[{host}]" if ":" in host else host, token)


def open_ring(nodes: Nodes | None, ranks: Ranks, saver: Saver, say: Callable[[str], None]) -> Ring | None:
    """Have the savers of the nodes' first ranks serve their memory; None if there is one node, or none can."""
    if nodes is None:
        return None
    addresses = ranks.gathered(saver.serve(nodes.host, nodes.token) if nodes.acts else None)
    by_node = {node: addresses[node] for node in nodes.all}
    if missing := [node for node, address in by_node.items() if address is None]:
        say(f"the memory of the node of rank {missing[0]} cannot be served, and is not mirrored in a second node's")
    return Ring(nodes, by_node)


def route_to(host: str) -> str:
    """The address of the interface by which this node reaches a host; that of the loopback if it does not."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as connection:
            connection.connect(place)  # of a datagram socket: nothing is sent
            address = str(connection.getsockname()[0]).partition("%")[0]
    except OSError:
        return LOOPBACK
    return address


def _is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback
