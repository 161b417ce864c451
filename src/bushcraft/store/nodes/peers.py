"""The other nodes of the cluster as a source of objects, so that the depots are read about once a cluster.

Each piece of an object has an owner, which all nodes find from the list of addresses (`rendezvous_hash.py`); whoever
wants the piece asks the owner's server, which has it in its cache or reads it from the depots once. The server of
this node is asked like any other, so that what its own processes want is read once, too. A peer that is silent is left
alone for a growing while, one that gave wrong bytes for long; neither costs more than time.
"""

import os
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bushcraft.errors import StoreError
from bushcraft.store.nodes.peer_link import PeerLink, PeerStats
from bushcraft.store.nodes.peer_wire import Buffer
from bushcraft.store.nodes.rendezvous_hash import by_weight, pieces

TOKEN_VARIABLE = "BUSHCRAFT_TOKEN"
MOST_ASKED = 3
"""Peers that are asked for one piece before the caller has to read it elsewhere."""
_AT_ONCE = 8
_MOST_REMEMBERED = 4096
_PARTIAL, _BUSY = 206, 503

Range = tuple[str, int, int]


@dataclass(frozen=True)
class _Given:
    """A piece that a peer gave, to be compared with the right bytes."""

    begin: int
    end: int
    address: str
    digest: bytes


class Peers:
    """The nodes at `addresses` ("HOST:PORT", the same list on all), of which this one is `own`. A `RangeSource`.

    The token is that of the run, by default from `BUSHCRAFT_TOKEN`. `seconds` is how long one peer may take for one
    piece. Errors: `StoreError` if there is no token or an address is none.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        own: str | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        token = (token or token_from_environment()).strip()
        try:
            self._links = {
                address: PeerLink(address, token, tls, clock) for address in (*addresses, *filter(None, [own]))
            }
        except ValueError as error:
            raise StoreError(f"{error} is not the address of a peer", "Write HOST:PORT") from None
        self.own = own
        self._seconds = seconds
        self._given: OrderedDict[Range, list[_Given]] = OrderedDict()
        self._accused: OrderedDict[Range, list[_Given]] = OrderedDict()
        self._start()

    def fetch(self, name: str, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of object `name`, unverified; None if no peer that was asked has them all."""
        self._start_after_fork()
        if begin == end:
            return b""
        buffer, parts = Buffer(end - begin), pieces(begin, end)

        def get(piece: tuple[int, int]) -> _Given | None:
            return self._get(name, piece, buffer.view[piece[0] - begin : piece[1] - begin])

        given = [get(parts[0])] if len(parts) == 1 else list(self._pool.map(get, parts))
        found = [piece for piece in given if piece is not None]
        data = buffer.take()
        if len(found) < len(parts):
            return None
        self._remember(self._given, (name, begin, end), found)
        return data

    def blame(self, name: str, begin: int, end: int) -> None:
        """What it gave was wrong. A peer that gave all of it is named at once, else when the right bytes are kept."""
        with self._lock:
            given = self._given.pop((name, begin, end), [])
        if len({piece.address for piece in given}) == 1:
            self._found_wrong(name, given)
        elif given:
            self._remember(self._accused, (name, begin, end), given)

    def keep(self, name: str, begin: int, end: int, data: bytes) -> None:
        """The right bytes: whoever gave others before is found by them. Peers keep in their servers, not here."""
        with self._lock:
            accused = self._accused.pop((name, begin, end), [])
        view = memoryview(data)
        wrong = [
            piece
            for piece in accused
            if xxhash.xxh3_128_digest(view[piece.begin - begin : piece.end - begin]) != piece.digest
        ]
        self._found_wrong(name, wrong)

    def stats(self) -> dict[str, PeerStats]:
        """What each peer gave this process, by address."""
        return {address: link.stats() for address, link in self._links.items()}

    def close(self) -> None:
        """End all connections."""
        self._pool.shutdown()
        for link in self._links.values():
            link.close()

    def _get(self, name: str, piece: tuple[int, int], view: memoryview) -> _Given | None:
        """From the first that has it, in the order of the piece. Others are asked only where one is silent or busy."""
        awake = [link for link in self._links.values() if not link.rests()]
        order = by_weight([link.address for link in awake], name, piece[0])
        for address in order[:MOST_ASKED]:
            status = self._links[address].get(name, piece[0], view, self._seconds)
            if status == _PARTIAL:
                return _Given(*piece, address, xxhash.xxh3_128_digest(view))
            if status not in (0, _BUSY):
                return None
        return None

    def _found_wrong(self, name: str, given: list[_Given]) -> None:
        """It may be honest and have a bad copy, so that it is told."""
        by_address: dict[str, list[_Given]] = {}
        for piece in given:
            by_address.setdefault(piece.address, []).append(piece)
        for address, wrong in by_address.items():
            self._links[address].was_wrong(name, wrong[0].begin, wrong[0].end)
            for piece in wrong:
                self._links[address].forget(name, piece.begin, piece.end, 1.0)

    def _remember(self, where: OrderedDict[Range, list[_Given]], key: Range, given: list[_Given]) -> None:
        with self._lock:
            where[key] = given
            if len(where) > _MOST_REMEMBERED:
                where.popitem(last=False)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="peers")

    def _start_after_fork(self) -> None:
        """A forked process has not its parent's threads, and must not share its connections."""
        if self._pid != os.getpid():
            self._start()
            for link in self._links.values():
                link.start_after_fork()


def token_from_environment() -> str:
    """The run's token. Errors: `StoreError` if there is none."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise StoreError(
            f"peers need the run's token, and {TOKEN_VARIABLE} is not set",
            f"Set {TOKEN_VARIABLE}, the same on all nodes",
        )
    return token


def client_tls(authority: Path) -> ssl.SSLContext:
    """Trusts the certificates of peers that `authority` (PEM) signed. Errors: `StoreError`."""
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise StoreError(f"cannot use certificates {authority}: {error.strerror or error}", "Give a PEM file") from None
