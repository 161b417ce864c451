"""A small cluster on this machine: an origin and nodes, each in a network namespace, all on one bridge. Needs root.

Each node has two processes, as in a run: an agent that serves its cache to the others, and a reader that reads one
object through a `Depots` whose only depot is far away, the origin. They are told what to do over standard input, a
line each, and answer with a line of JSON. Only namespaces that `Cluster` made are touched, and they go with it.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bushcraft.errors import MissingObjectError, UnreachableError
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.local import LocalDepot
from bushcraft.store.nodes.cache import Cache
from bushcraft.store.nodes.peer_link import PeerLink
from bushcraft.store.nodes.peer_server import PeerServer
from bushcraft.store.nodes.peer_wire import Buffer
from bushcraft.store.nodes.peers import Peers
from bushcraft.store.nodes.rendezvous_hash import pieces
from bushcraft.store.settings import DepotSettings, StoreSettings

PORT = 7000
TOKEN = "the token of this cluster"
ORIGIN_TOKEN = "the key of the provider"
SETTINGS = StoreSettings(depots=(DepotSettings(name="origin", url="s3://origin", provider="far"),))
CACHE_BYTES = 4 * 2**30


class FarDepot(Depot):
    """The origin, as nodes see it: an object store that counts what it gives."""

    def __init__(self, address: str) -> None:
        self.name = "origin"
        self._link = PeerLink(address, ORIGIN_TOKEN, None, time.monotonic)
        self._sizes = LocalDepot(Path(os.environ["ORIGIN_ROOT"]))

    def has(self, name: str) -> bool:
        return self._sizes.has(name)

    def size(self, name: str) -> int:
        return self._sizes.size(name)

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        buffer = Buffer(end - begin)
        for first, last in pieces(begin, end):
            status = self._link.get(name, first, buffer.view[first - begin : last - begin], 60.0)
            if status != 206:
                raise MissingObjectError(name) if status == 404 else UnreachableError("the origin does not answer")
        return buffer.take()

    def fetch_all(self, name: str) -> bytes:
        return self.fetch(name, 0, self.size(name))

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return self._sizes.objects(prefix)

    def ref_values(self, ref: str) -> list[tuple[int, str]]:
        return self._sizes.ref_values(ref)

    def refs(self, prefix: str = "") -> list[str]:
        return self._sizes.refs(prefix)

    def _read_only(self, *_: object) -> Any:
        raise UnreachableError("the origin is read only here")

    def new_file(self) -> IncomingFile:
        return self._sizes.new_file()

    holds = store_bytes = store_file = add_ref = remove_object = remove_ref = _read_only


class LyingDepot(FarDepot):
    """What a node's agent has that changes one bit of each piece."""

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        data = bytearray(super().fetch(name, begin, end))
        data[len(data) // 2] ^= 1
        return bytes(data)


# The processes of a node


def be_origin(address: str) -> None:
    """Answers each line with the bytes that it has given since the line before."""
    given = 0
    with PeerServer(LocalDepot(Path(os.environ["ORIGIN_ROOT"])), address, ORIGIN_TOKEN) as server:
        say(ready=True)
        for _ in sys.stdin:
            say(bytes=server.stats.bytes_sent - given)
            given = server.stats.bytes_sent


def be_agent(address: str, origin: str, root: Path, lies: bool) -> None:
    depot = LyingDepot(origin) if lies else FarDepot(origin)
    with PeerServer(depot, address, TOKEN, Cache(root / "cache", CACHE_BYTES)):
        say(ready=True)
        sys.stdin.read()


def be_reader(address: str, origin: str, root: Path, addresses: list[str]) -> None:
    """Reads what each line says: an object, and [begin, end) of it or nothing. Pieces have a checksum, as packs do."""
    peers = Peers(addresses, own=address, token=TOKEN, seconds=10.0) if addresses else None
    sources = [Cache(root / "cache", CACHE_BYTES), peers] if peers else []
    depots = Depots([FarDepot(origin)], SETTINGS, root, sources)
    expected = LocalDepot(Path(os.environ["ORIGIN_ROOT"]))
    say(ready=True)
    for line in sys.stdin:
        name, *piece = json.loads(line)
        began = time.monotonic()
        if piece:
            right = all(read_piece(depots, expected, name, first, last) for first, last in pieces(*piece))
        else:
            depots.read(name)  # verified, or an error
            right = True
        avoided = [address for address, peer in peers.stats().items() if peer.wrong] if peers else []
        say(right=right, seconds=time.monotonic() - began, avoided=avoided)


def read_piece(depots: Depots, expected: LocalDepot, name: str, begin: int, end: int) -> bool:
    wanted = expected.fetch(name, begin, end)
    return depots.read_range(name, begin, end, lambda data: data == wanted) == wanted


def say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


# The cluster


@dataclass
class Process:
    """One process in a namespace."""

    popen: subprocess.Popen[str]

    def tell(self, what: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(what) + "\n")
        self.popen.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the cluster ended: {self.popen.args}")
        return dict(json.loads(line))

    def kill(self) -> None:
        with self.popen:  # which closes its pipes
            self.popen.kill()


@dataclass
class Cluster:
    """An origin and `n_nodes` nodes below `root`, with the object store's line limited to `origin_rate` (of `tc`)."""

    root: Path
    n_nodes: int = 4
    origin_rate: str | None = None
    liars: tuple[int, ...] = ()
    share: bool = True
    """Whether the nodes have a cache and peers, or read the origin each by itself."""
    agents: list[Process] = field(default_factory=list)
    readers: list[Process] = field(default_factory=list)
    _id: str = field(default_factory=lambda: f"bushcraft-peers-{secrets.token_hex(3)}")
    _spaces: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.readers, *self.agents, *self._origins()]:
            process.kill()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)

    def depot(self) -> LocalDepot:
        """The origin's depot, to put objects into."""
        return LocalDepot.create(self.root / "origin")

    def read_everywhere(self, name: str, *piece: int) -> list[dict[str, Any]]:
        """What all nodes answer that read the same at the same time."""
        for reader in self.readers:
            reader.tell([name, *piece])
        return [reader.answer() for reader in self.readers]

    def origin_bytes(self) -> int:
        """What the origin gave since the last time."""
        self.origin.tell("bytes")
        return int(self.origin.answer()["bytes"])

    def _build(self) -> None:
        self.depot()
        hub = self._space("hub")
        run_ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", hub, "link", "set", "bridge", "up")
        origin = self._joined(hub, "origin", 100)
        if self.origin_rate:
            limit = ["rate", self.origin_rate, "burst", "1mb", "latency", "50ms"]
            subprocess.run(["tc", "-n", origin, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit], check=True)
        self.origin = self._begin(origin, "origin", place(100))
        nodes = [self._joined(hub, f"node{n}", n + 1) for n in range(self.n_nodes)]
        addresses = [place(n + 1) for n in range(self.n_nodes)] if self.share else []
        for n, space in enumerate(nodes):
            options = [place(n + 1), "--origin", place(100), "--root", str(self.root / f"node{n}")]
            if self.share:
                lies = ["--lies"] if n in self.liars else []
                self.agents.append(self._begin(space, "agent", *options, *lies))
            self.readers.append(self._begin(space, "reader", *options, "--peers", *addresses))
        for process in [self.origin, *self.agents, *self.readers]:
            process.answer()

    def _origins(self) -> list[Process]:
        return [self.origin] if hasattr(self, "origin") else []

    def _space(self, name: str) -> str:
        space = f"{self._id}-{name}"
        run_ip("netns", "add", space)
        self._spaces.append(space)
        run_ip("-n", space, "link", "set", "lo", "up")
        return space

    def _joined(self, hub: str, name: str, number: int) -> str:
        """A new namespace with a line to the bridge."""
        space = self._space(name)
        peer = ["peer", "name", f"port{number}", "netns", hub]
        run_ip("-n", space, "link", "add", "eth0", "type", "veth", *peer)
        run_ip("-n", hub, "link", "set", f"port{number}", "master", "bridge", "up")
        run_ip("-n", space, "address", "add", f"{host(number)}/24", "dev", "eth0")
        run_ip("-n", space, "link", "set", "eth0", "up")
        return space

    def _begin(self, space: str, role: str, *options: str) -> Process:
        command = ["ip", "netns", "exec", space, sys.executable, __file__, role, *options]
        environment = {**os.environ, "ORIGIN_ROOT": str(self.root / "origin")}
        return Process(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )


def place(number: int) -> str:
    return f"{host(number)}:{PORT}"


def host(number: int) -> str:
    return f"10.77.0.{number}"


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def why_not() -> str | None:
    """Why this machine can make no network namespaces; None if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"bushcraft-peers-{secrets.token_hex(3)}"
    try:
        run_ip("netns", "add", name)
        run_ip("-n", name, "link", "add", "bridge", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.decode().strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    return None


def main() -> None:
    options = argparse.ArgumentParser(description="One process of a node; `Cluster` starts them.")
    options.add_argument("role", choices=["origin", "agent", "reader"])
    options.add_argument("address")
    options.add_argument("--origin")
    options.add_argument("--root", type=Path)
    options.add_argument("--lies", action="store_true")
    options.add_argument("--peers", nargs="*", default=[])
    chosen = options.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if chosen.role == "origin":
            be_origin(chosen.address)
        elif chosen.role == "agent":
            be_agent(chosen.address, chosen.origin, chosen.root, chosen.lies)
        else:
            be_reader(chosen.address, chosen.origin, chosen.root, chosen.peers)


if __name__ == "__main__":
    main()
