"""The cache of a node and the peers of a cluster: how often the origin is read, and how fast. A part of `store.py`.

Four nodes, each in a network namespace of its own, read one object from an origin at the same time. The peer to
compare with is what they do without peers: each reads the origin by itself.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from peers_nodes import Cluster, place, why_not
from result import Row, row

from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot
from bushcraft.store.nodes.cache import Cache
from bushcraft.store.nodes.peer_server import PeerServer
from bushcraft.store.nodes.peers import Peers

MIB = 2**20
N_NODES = 4
ORIGIN_RATE = "1gbit"
REPEATS = 5


def peers(quick: bool) -> list[Row]:
    """The rows of this part."""
    size = (64 if quick else 512) * MIB
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    rows = speed(data[: 256 * MIB])
    if reason := why_not():
        print(f"no cluster was measured: {reason}", file=sys.stderr)
        return rows
    return [*traffic(data), *faults(data), *rows]


def traffic(data: bytes) -> list[Row]:
    alone_bytes, alone_seconds, _ = read_by_all(data, share=False)
    bytes_read, seconds, right = read_by_all(data)
    piece_bytes, _, pieces_right = read_by_all(data, piece_by_piece=True)
    assert right
    assert pieces_right
    size, alone = len(data), "each node by itself"
    mib = size // MIB
    return [
        row(
            f"bytes read from the origin ÷ size, {N_NODES} nodes read one object of {mib} MiB at once",
            "×",
            bytes_read / size,
            peer=alone_bytes / size,
            peer_name=alone,
            limit=1.0,
            at_most=1.3,
        ),
        row(
            f"the same, piece by piece ({mib} MiB in pieces of 4 MiB)",
            "×",
            piece_bytes / size,
            peer=alone_bytes / size,
            peer_name=alone,
            limit=1.0,
            at_most=1.3,
        ),
        row(
            f"until all {N_NODES} have it, the origin's line limited to 1 Gbit/s",
            "s",
            seconds,
            peer=alone_seconds,
            peer_name=alone,
            limit=size * 8 / 1e9,
        ),
    ]


def faults(data: bytes) -> list[Row]:
    """One peer lies from the beginning, another is killed when the first bytes have come."""
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), N_NODES, liars=(1,)) as cluster:
        name = cluster.depot().put_bytes(data)
        for reader in cluster.readers:
            reader.tell([name, 0, len(data)])
        while cluster.origin_bytes() == 0:
            continue
        cluster.agents[2].kill()
        answers = [reader.answer() for reader in cluster.readers]
    n_right = sum(answer["right"] and answer["avoided"] == [place(2)] for answer in answers)
    claim = f"nodes of {N_NODES} that read all bytes right and named the liar, one peer lying and one killed midway"
    return [row(claim, "nodes", n_right, at_least=N_NODES)]


def read_by_all(data: bytes, share: bool = True, piece_by_piece: bool = False) -> tuple[int, float, bool]:
    """Bytes that the origin gave, the seconds of the last node, and whether all got the right bytes."""
    rate = None if piece_by_piece else ORIGIN_RATE
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), N_NODES, rate, share=share) as cluster:
        name = cluster.depot().put_bytes(data)
        answers = cluster.read_everywhere(name, *((0, len(data)) if piece_by_piece else ()))
        return cluster.origin_bytes(), max(a["seconds"] for a in answers), all(a["right"] for a in answers)


def speed(data: bytes) -> list[Row]:
    """One reader, everything in the page cache: the cache beside a file, a peer beside a bare socket. GB/s."""
    name, size = object_name(data), len(data)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        cache = Cache(root / "cache", 4 * size)
        cache.keep(name, 0, size, data)
        path = root / "file"
        path.write_bytes(data)
        depot = LocalDepot.create(root / "depot")
        by_file = gigabytes(size, path.read_bytes)
        by_cache = gigabytes(size, lambda: cache.fetch(name, 0, size))
        copied = gigabytes(size, lambda: bytes(memoryview(data)))
        with Served(serve_pieces, depot.root, cache.root) as served:
            reader = Peers([served.address], token="t")
            assert reader.fetch(name, 0, size) == data
            by_peer = gigabytes(size, lambda: reader.fetch(name, 0, size))
        with Served(serve_file, path, size) as served:
            by_socket = gigabytes(size, lambda: received(served.address, size))
    what = f"{size // MIB} MiB"
    return [
        row(f"verified cache, warm, {what}", "GB/s", by_cache, peer=by_file, peer_name="the plain file", limit=copied),
        row(f"one peer on loopback, warm, {what}", "GB/s", by_peer, limit=by_socket, at_least=1.0),
    ]


def gigabytes(size: int, work: Callable[[], object]) -> float:
    """GB/s of the best of some runs."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return size / best / 1e9


class Served:
    """A server in a process of its own."""

    def __init__(self, serve: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *arguments))

    def __enter__(self) -> "Served":
        self._process.start()
        self.address = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send("end")
        self._process.join()


def serve_pieces(pipe: Connection, depot: Path, cache: Path) -> None:
    with PeerServer(LocalDepot(depot), "127.0.0.1:0", "t", Cache(cache, 2**40)) as server:
        pipe.send(server.address)
        pipe.recv()


def serve_file(pipe: Connection, path: Path, size: int) -> None:
    """The floor: each connection gets the file by `sendfile`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def give() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, path.open("rb") as file:
                n_done = 0
                while n_done < size:
                    n_done += os.sendfile(connection.fileno(), file.fileno(), n_done, size - n_done)

    threading.Thread(target=give, daemon=True).start()
    pipe.send(listener.getsockname())
    pipe.recv()


def received(address: tuple[str, int], size: int) -> bytearray:
    buffer = bytearray(size)
    view, n_done = memoryview(buffer), 0
    with socket.create_connection(address) as connection:
        while n_done < size:
            n_done += connection.recv_into(view[n_done:])
    return buffer
