"""Peers read the depots once for all; a dead, lying, truncating, slow or foreign peer costs time only."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.errors import StoreError, UnreachableError
from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot
from bushcraft.store.nodes.cache import Cache
from bushcraft.store.nodes.peer_link import WRONG
from bushcraft.store.nodes.peer_listener import PeerListener
from bushcraft.store.nodes.peer_server import PeerServer, serve, server_tls
from bushcraft.store.nodes.peer_wire import Wire, WireError
from bushcraft.store.nodes.peers import Peers, client_tls
from bushcraft.store.nodes.rendezvous_hash import BLOCK, by_weight, pieces

TOKEN = "the run's tökén"
N_BLOCKS = 20
"""So many that each of two addresses owns one, whatever their ports are: else once in a million times."""
DATA = np.random.default_rng(0).integers(0, 256, N_BLOCKS * BLOCK + 1234, dtype=np.uint8).tobytes()
NAME = object_name(DATA)


class FlippingDepot(LocalDepot):
    """Lies in one bit of each piece."""

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        data = bytearray(super().fetch(name, begin, end))
        data[len(data) // 3] ^= 1
        return bytes(data)


class HeldDepot(LocalDepot):
    """Gives nothing until it is let, and counts."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked, self.may_go, self.n_reads = threading.Event(), threading.Event(), 0

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        self.n_reads += 1
        self.asked.set()
        assert self.may_go.wait(60)
        return super().fetch(name, begin, end)


def node(pipe: Connection, depot: Path, cache: Path, kind: type[LocalDepot]) -> None:
    """The process of a node: serves until it is told to end."""
    with PeerServer(kind(depot), "127.0.0.1:0", TOKEN, Cache(cache, 2**30)) as server:
        pipe.send(server.address)
        while pipe.recv() != "end":
            pipe.send(server.stats)


@dataclass
class Node:
    process: Any
    pipe: Connection
    address: str

    def origin_bytes(self) -> int:
        self.pipe.send("stats")
        return int(self.pipe.recv().origin_bytes)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    depot = LocalDepot.create(tmp_path_factory.mktemp("original") / "depot")
    assert depot.put_bytes(DATA) == NAME
    return depot.root


@pytest.fixture
def depot_root(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "depot")


@pytest.fixture
def start(tmp_path: Path, depot_root: Path) -> Iterator[Callable[..., list[Node]]]:
    """Starts nodes, each a process of its own."""
    context, nodes = multiprocessing.get_context("spawn"), []

    def started(*kinds: type[LocalDepot]) -> list[Node]:
        begun = []
        for kind in kinds:
            ours, theirs = context.Pipe()
            root = tmp_path / f"cache-{len(nodes) + len(begun)}"
            process = context.Process(target=node, args=(theirs, depot_root, root, kind))
            process.start()
            begun.append((process, ours))
        new = [Node(process, pipe, pipe.recv()) for process, pipe in begun]
        nodes.extend(new)
        return new

    yield started
    for one in nodes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            one.pipe.send("end")
    for one in nodes:
        one.process.join()


@contextlib.contextmanager
def raw_server(serve: Callable[[Wire], None]) -> Iterator[str]:
    """A peer that does what no honest one does."""
    listener = PeerListener(("127.0.0.1", 0), serve)
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{listener.server_address[1]}"
    listener.shutdown()
    listener.server_close()


def peers_of(*addresses: str, **options: Any) -> Peers:
    return Peers(addresses, token=TOKEN, **options)


def a_piece_owned_by(address: str, addresses: list[str]) -> tuple[int, int]:
    return next(p for p in pieces(0, N_BLOCKS * BLOCK) if by_weight(addresses, NAME, p[0])[0] == address)


# Rendezvous hashing


@given(begin=st.integers(0, 10 * BLOCK), size=st.integers(0, 10 * BLOCK))
def test_pieces_make_up_the_range_and_agree_with_those_of_other_ranges(begin: int, size: int) -> None:
    parts = pieces(begin, begin + size)
    assert parts[0][0] == begin
    assert parts[-1][1] == begin + size
    assert all(one[1] == next_one[0] for one, next_one in itertools.pairwise(parts))
    assert all(b - a <= BLOCK for a, b in parts)
    assert all(cut % BLOCK == 0 for _, cut in parts[:-1])


@given(st.lists(st.from_regex(r"10\.0\.0\.[0-9]{1,3}:7000", fullmatch=True), min_size=2, max_size=20, unique=True))
def test_a_node_that_leaves_moves_only_its_own_pieces(addresses: list[str]) -> None:
    left, *others = addresses
    for begin in range(0, 50 * BLOCK, BLOCK):
        order = by_weight(addresses, NAME, begin)
        assert by_weight(others, NAME, begin) == [address for address in order if address != left]
        assert by_weight(reversed(addresses), NAME, begin + 17) == order


def test_pieces_are_spread_evenly() -> None:
    addresses = [f"10.0.0.{n}:7000" for n in range(8)]
    owners = [by_weight(addresses, NAME, begin)[0] for begin in range(0, 4000 * BLOCK, BLOCK)]
    assert all(400 < owners.count(address) < 600 for address in addresses)


# Honest peers


def test_nodes_that_read_at_the_same_time_read_the_depot_once(start: Callable[..., list[Node]]) -> None:
    nodes = start(LocalDepot, LocalDepot, LocalDepot)
    readers = [peers_of(*(n.address for n in nodes), own=one.address) for one in nodes]
    with ThreadPoolExecutor(3) as pool:
        for data in pool.map(lambda reader: reader.fetch(NAME, 0, len(DATA)), readers):
            assert data == DATA
    assert sum(one.origin_bytes() for one in nodes) == len(DATA)
    assert all(one.origin_bytes() > 0 for one in nodes)


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (5, 5), (BLOCK - 3, BLOCK + 3), (7, 2 * BLOCK + 9), (0, BLOCK)])
def test_any_range_is_given(start: Callable[..., list[Node]], begin: int, end: int) -> None:
    (one,) = start(LocalDepot)
    reader = peers_of(one.address)
    for _ in range(2):  # from the depot, then from the cache
        assert reader.fetch(NAME, begin, end) == DATA[begin:end]


def test_single_flight(depot_root: Path, tmp_path: Path) -> None:
    depot = HeldDepot(depot_root)
    with (
        PeerServer(depot, "127.0.0.1:0", TOKEN, Cache(tmp_path / "cache", 2**20)) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        reads = [pool.submit(peers_of(server.address).fetch, NAME, 0, 1000) for _ in range(6)]
        assert depot.asked.wait(60)
        depot.may_go.set()
        assert [read.result() for read in reads] == [DATA[:1000]] * 6
    assert depot.n_reads == 1


def test_what_came_into_the_cache_since_it_was_looked_for_is_not_read_again(depot_root: Path, tmp_path: Path) -> None:
    class LateCache(Cache):
        def lend(self, *_: object) -> None:
            return None

    depot = HeldDepot(depot_root)
    depot.may_go.set()
    with PeerServer(depot, "127.0.0.1:0", TOKEN, LateCache(tmp_path / "cache", 2**20)) as server:
        for _ in range(2):
            assert peers_of(server.address).fetch(NAME, 0, 1000) == DATA[:1000]
    assert depot.n_reads == 1


def test_what_the_depots_lack_is_none_and_asked_of_one_peer(depot_root: Path) -> None:
    depot = LocalDepot(depot_root)
    with PeerServer(depot, "127.0.0.1:0", TOKEN) as one, PeerServer(depot, "127.0.0.1:0", TOKEN) as other:
        reader = peers_of(one.address, other.address)
        assert reader.fetch("ab" * 32, 0, 10) is None
        assert reader.fetch(NAME, len(DATA) - 5, len(DATA) + 5) is None
        assert one.stats.refused + other.stats.refused == 2
        assert not any(peer.resting for peer in reader.stats().values())


def test_depots_that_do_not_answer_are_not_held_against_the_peer(depot_root: Path) -> None:
    class Unreachable(LocalDepot):
        def fetch(self, name: str, begin: int, end: int) -> bytes:
            raise UnreachableError(f"bytes {begin}-{end} of {name} cannot be had at night")

    with PeerServer(Unreachable(depot_root), "127.0.0.1:0", TOKEN) as server:
        reader = peers_of(server.address)
        assert reader.fetch(NAME, 0, 10) is None
        assert not reader.stats()[server.address].resting


def test_a_server_that_was_restarted_is_found_again_at_once(depot_root: Path) -> None:
    with PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as server:
        reader = peers_of(server.address)
        assert reader.fetch(NAME, 0, 10) == DATA[:10]
    with PeerServer(LocalDepot(depot_root), server.address, TOKEN):
        assert reader.fetch(NAME, 0, 10) == DATA[:10]


def test_a_forked_process_has_connections_of_its_own(start: Callable[..., list[Node]]) -> None:
    (one,) = start(LocalDepot)
    reader = peers_of(one.address)
    assert reader.fetch(NAME, 0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    child = multiprocessing.get_context("fork").Process(target=read_in_child, args=(reader,))
    child.start()
    assert reader.fetch(NAME, 0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    child.join(60)
    assert child.exitcode == 0


def read_in_child(reader: Peers) -> None:
    assert reader.fetch(NAME, 0, 3 * BLOCK) == DATA[: 3 * BLOCK]


def write_certificate(path: Path, host: str) -> None:
    """A certificate (PEM) for an address, signed by itself, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(pem) + private)


def test_with_certificates_only_the_right_peer_is_read(depot_root: Path, tmp_path: Path) -> None:
    ours, foreign = tmp_path / "ours.pem", tmp_path / "foreign.pem"
    write_certificate(ours, "127.0.0.1")
    write_certificate(foreign, "127.0.0.1")
    depot, cache = LocalDepot(depot_root), Cache(tmp_path / "cache", 2**30)
    with PeerServer(depot, "127.0.0.1:0", TOKEN, cache, server_tls(ours)) as server:
        reader = peers_of(server.address, tls=client_tls(ours))
        for _ in range(2):  # from the depot, then from the cache
            assert reader.fetch(NAME, 0, len(DATA)) == DATA
        assert peers_of(server.address, tls=client_tls(foreign)).fetch(NAME, 0, 10) is None
        assert peers_of(server.address).fetch(NAME, 0, 10) is None
    with PeerServer(depot, "127.0.0.1:0", TOKEN) as plain:
        assert peers_of(plain.address, tls=client_tls(ours)).fetch(NAME, 0, 10) is None


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "certificate.pem"
    if content is not None:
        path.write_bytes(content)
    for use in (server_tls, client_tls):
        with pytest.raises(StoreError, match=r"certificate\.pem"):
            use(path)


def test_the_agent_serves_until_it_is_terminated(depot_root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    agent = multiprocessing.get_context("spawn").Process(target=serve, args=(LocalDepot(depot_root), address, TOKEN))
    agent.start()
    while agent.is_alive() and peers_of(address).fetch(NAME, 0, 10) is None:
        pass
    assert peers_of(address).fetch(NAME, 0, 10) == DATA[:10]
    agent.terminate()
    agent.join(60)
    assert agent.exitcode == 0


# Bad peers


def test_a_dead_peer_costs_time_only_and_is_left_alone_for_a_growing_while(start: Callable[..., list[Node]]) -> None:
    nodes = start(LocalDepot, LocalDepot, LocalDepot)
    now = [0.0]
    reader = peers_of(*(n.address for n in nodes), clock=lambda: now[0])
    assert reader.fetch(NAME, 0, len(DATA)) == DATA
    dead = nodes[1]
    dead.process.kill()
    dead.process.join()
    for seconds in (1.0, 2.0, 4.0):
        assert reader.fetch(NAME, 0, len(DATA)) == DATA
        assert reader.stats()[dead.address].resting
        now[0] += seconds - 0.1
        assert reader.stats()[dead.address].resting
        now[0] += 0.2
        assert not reader.stats()[dead.address].resting


def test_a_peer_that_hangs_costs_one_deadline(start: Callable[..., list[Node]]) -> None:
    nodes = start(LocalDepot, LocalDepot)
    addresses = [n.address for n in nodes]
    reader = peers_of(*addresses, seconds=1.0, clock=lambda: 0.0)
    os.kill(nodes[0].process.pid, signal.SIGSTOP)
    begin, end = a_piece_owned_by(addresses[0], addresses)
    for _ in range(5):
        assert reader.fetch(NAME, begin, end) == DATA[begin:end]
    assert reader.stats()[addresses[0]].failures == 1


def test_a_slow_peer_is_left_at_the_deadline_for_the_next(depot_root: Path) -> None:
    slow = HeldDepot(depot_root)
    with PeerServer(slow, "127.0.0.1:0", TOKEN) as one, PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as two:
        addresses = [one.address, two.address]
        reader = peers_of(*addresses, seconds=1.0)
        begin, end = a_piece_owned_by(one.address, addresses)
        assert reader.fetch(NAME, begin, end) == DATA[begin:end]
        assert slow.asked.is_set()
        slow.may_go.set()


def dripping(wire: Wire) -> None:
    wire.receive_head(time.monotonic() + 60)
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {BLOCK}\r\n\r\n".encode()
    wire.send(head, time.monotonic() + 60)
    while True:  # a byte every 20 ms, until the other side gives up
        wire.send(b"x", time.monotonic() + 60)
        with contextlib.suppress(TimeoutError):
            wire.receive_head(time.monotonic() + 0.02)


def truncating(wire: Wire) -> None:
    wire.receive_head(time.monotonic() + 60)
    wire.send(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {BLOCK}\r\n\r\n".encode(), time.monotonic() + 60)
    wire.send(bytes(BLOCK // 2), time.monotonic() + 60)


def answering(answer: bytes) -> Callable[[Wire], None]:
    def serve(wire: Wire) -> None:
        while wire.receive_head(time.monotonic() + 60) is not None:
            wire.send(answer, time.monotonic() + 60)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        dripping,
        truncating,
        answering(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nshort"),
        answering(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {BLOCK + 5}\r\n\r\n".encode() + bytes(BLOCK + 5)),
        answering(b"HTTP/1.1 206 Partial Content\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"),
        answering(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /\r\n\r\n"),
        answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        answering(b"x" * 100_000),
        lambda _: None,
    ],
    ids=[
        "dripping",
        "truncating",
        "short",
        "long",
        "no-length",
        "200",
        "redirect",
        "no-http",
        "endless-head",
        "closing",
    ],
)
def test_a_peer_that_does_not_keep_to_the_protocol_costs_time_only(
    depot_root: Path, serve: Callable[[Wire], None]
) -> None:
    with raw_server(serve) as bad, PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as good:
        reader = peers_of(bad, good.address, seconds=2.0, clock=lambda: 0.0)
        begin, end = a_piece_owned_by(bad, [bad, good.address])
        assert reader.fetch(NAME, begin, end) == DATA[begin:end]
        assert reader.stats()[bad].resting
        assert not reader.stats()[good.address].resting


def test_a_lying_peer_is_named_and_avoided_for_long(
    start: Callable[..., list[Node]], caplog: pytest.LogCaptureFixture
) -> None:
    liar, honest = start(FlippingDepot, LocalDepot)
    addresses, now = [liar.address, honest.address], [0.0]
    reader = peers_of(*addresses, clock=lambda: now[0])
    begin, end = a_piece_owned_by(liar.address, addresses)
    assert reader.fetch(NAME, begin, end) != DATA[begin:end]
    with caplog.at_level(logging.WARNING):
        reader.blame(NAME, begin, end)
    assert liar.address in caplog.text
    assert reader.fetch(NAME, begin, end) == DATA[begin:end]
    now[0] += WRONG.first - 1
    assert reader.fetch(NAME, begin, end) == DATA[begin:end]
    assert reader.stats()[liar.address].wrong == 1


def test_of_many_peers_the_one_that_lied_is_found_by_the_right_bytes(start: Callable[..., list[Node]]) -> None:
    nodes = start(LocalDepot, FlippingDepot, LocalDepot)
    reader = peers_of(*(n.address for n in nodes))
    assert reader.fetch(NAME, 0, len(DATA)) not in (DATA, None)
    reader.blame(NAME, 0, len(DATA))
    assert not any(peer.resting for peer in reader.stats().values())
    reader.keep(NAME, 0, len(DATA), DATA)
    assert [reader.stats()[n.address].resting for n in nodes] == [False, True, False]
    assert reader.fetch(NAME, 0, len(DATA)) == DATA


def test_an_honest_peer_that_read_a_bad_copy_reads_it_again_when_it_was_blamed(
    depot_root: Path, tmp_path: Path
) -> None:
    depot = LocalDepot(depot_root)
    right = depot.path(NAME).read_bytes()
    depot.path(NAME).write_bytes(bytes(len(right)))
    with PeerServer(depot, "127.0.0.1:0", TOKEN, Cache(tmp_path / "cache", 2**30)) as server:
        reader = peers_of(server.address)
        assert reader.fetch(NAME, 0, BLOCK) == bytes(BLOCK)
        reader.blame(NAME, 0, BLOCK)
        depot.path(NAME).write_bytes(right)
        assert peers_of(server.address).fetch(NAME, 0, BLOCK) == DATA[:BLOCK]


def test_a_wrong_token_gets_nothing(depot_root: Path) -> None:
    with PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as server:
        for token in ("wrong", TOKEN + "x", "the run's token"):
            reader = Peers([server.address], token=token)
            assert reader.fetch(NAME, 0, 10) is None
        assert server.stats.bytes_sent == 0


def test_no_token_is_refused_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUSHCRAFT_TOKEN", raising=False)
    with pytest.raises(StoreError, match="BUSHCRAFT_TOKEN"):
        Peers(["127.0.0.1:7000"])
    monkeypatch.setenv("BUSHCRAFT_TOKEN", TOKEN)
    assert Peers(["127.0.0.1:7000"]).fetch(NAME, 0, 0) == b""


@pytest.mark.parametrize("address", ["127.0.0.1", "host:port", ":70", ""])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(StoreError, match="HOST:PORT"):
        Peers([address], token=TOKEN)


# The server refuses


def exchanged(address: str, request: bytes) -> bytes:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
    return received


RIGHT = f"Authorization: Bearer {TOKEN}\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=0-9\r\n\r\n", 401),
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=0-9\r\nAuthorization: Basic x\r\n\r\n", 401),
        (f"PUT /objects/{NAME} HTTP/1.1\r\n{RIGHT}\r\n", 405),
        (f"DELETE /objects/{NAME} HTTP/1.1\r\n{RIGHT}\r\n", 405),
        (f"GET /objects/{NAME} HTTP/1.1\r\n{RIGHT}\r\n", 400),
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=0-1,5-6\r\n{RIGHT}\r\n", 400),
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=0-9\r\nContent-Length: 5\r\n{RIGHT}\r\nhello", 400),
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=0-{BLOCK}\r\n{RIGHT}\r\n", 416),
        (f"GET /objects/{NAME} HTTP/1.1\r\nRange: bytes=9-0\r\n{RIGHT}\r\n", 416),
        (f"GET /objects/../../etc/passwd HTTP/1.1\r\nRange: bytes=0-9\r\n{RIGHT}\r\n", 404),
        (f"GET /objects/{'ab' * 32} HTTP/1.1\r\nRange: bytes=0-9\r\n{RIGHT}\r\n", 404),
        (f"HEAD /objects/{'ab' * 32} HTTP/1.1\r\n{RIGHT}\r\n", 404),
        (f"hello\r\n{RIGHT}\r\n", 400),
    ],
)
def test_all_that_is_no_right_request_is_refused_without_bytes(depot_root: Path, request_: str, status: int) -> None:
    with PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as server:
        answer = exchanged(server.address, request_.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.endswith(b"Content-Length: 0\r\n\r\n")


def test_head_gives_the_size(depot_root: Path) -> None:
    with PeerServer(LocalDepot(depot_root), "127.0.0.1:0", TOKEN) as server:
        answer = exchanged(server.address, f"HEAD /objects/{NAME} HTTP/1.1\r\n{RIGHT}\r\n".encode())
    assert answer == f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()


def test_a_head_without_end_is_cut_before_it_fills_the_memory() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET " + b"x" * 50_000)
        with pytest.raises(WireError, match="too long"):
            Wire(ours).receive_head(time.monotonic() + 5)


def test_more_connections_than_places_are_refused() -> None:
    entered, done = threading.Event(), threading.Event()

    def serve(_: Wire) -> None:
        entered.set()
        done.wait(60)

    listener = PeerListener(("127.0.0.1", 0), serve, most_connections=1)
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    address = f"127.0.0.1:{listener.server_address[1]}"
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        assert entered.wait(60)
        assert exchanged(address, b"").startswith(b"HTTP/1.1 503 ")
        done.set()
    listener.shutdown()
    listener.server_close()


def test_an_address_that_is_taken_is_named(depot_root: Path) -> None:
    depot = LocalDepot(depot_root)
    with (
        PeerServer(depot, "127.0.0.1:0", TOKEN) as server,
        pytest.raises(StoreError, match=server.address),
    ):
        PeerServer(depot, server.address, TOKEN)
