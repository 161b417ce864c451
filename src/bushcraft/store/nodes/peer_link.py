"""The way to one peer: its open connections, and whether it is worth asking."""

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bushcraft.store.nodes.peer_wire import Head, Wire, WireError, address_of, message

CONNECT_SECONDS = 2.0
MOST_IDLE_CONNECTIONS = 8
_STATUS = re.compile(r"HTTP/1\.1 (\d{3}) .*")
_OK, _PARTIAL, _UNAUTHORIZED = 200, 206, 401
_USUAL = (_PARTIAL, 404, 416, 503)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rest:
    """For how many seconds a peer is left alone: `first`, then twice as long each time, up to `longest`."""

    first: float
    longest: float

    def seconds(self, n_before: int) -> float:
        return min(self.first * 2.0 ** min(n_before, 64), self.longest)


SILENT = Rest(1.0, 300.0)
"""A peer that does not answer, or not as it should."""
WRONG = Rest(600.0, 86400.0)
"""A peer that gave wrong bytes."""


@dataclass
class PeerStats:
    """Of one peer, as this process saw it."""

    pieces: int = 0
    bytes: int = 0
    failures: int = 0
    wrong: int = 0
    """How often it gave wrong bytes."""
    resting: bool = False


class PeerLink:
    """One peer at "HOST:PORT". Errors: `ValueError` if that is not an address."""

    def __init__(self, address: str, token: str, tls: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self.address = address
        self._place = address_of(address)
        self._headers: dict[str, str | int] = {"Host": address, "Authorization": f"Bearer {token}"}
        self._tls = tls
        self._clock = clock
        self._idle: list[Wire] = []
        self._lock = threading.Lock()
        self._stats = PeerStats()
        self._failures_in_a_row = 0
        self._rests_until = float("-inf")

    def rests(self) -> bool:
        """Whether it failed of late and is left alone."""
        return self._clock() < self._rests_until

    def stats(self) -> PeerStats:
        with self._lock:
            return PeerStats(**{**vars(self._stats), "resting": self.rests()})

    def get(self, name: str, begin: int, view: memoryview, seconds: float) -> int:
        """Fill `view` with the bytes of an object from `begin` on, within so many seconds; the status of the answer.

        206: done; 404, 416: the depots lack it; 503: busy; 0: no answer that we understand, and the peer rests.
        """
        wanted = {"Range": f"bytes={begin}-{begin + len(view) - 1}"}
        try:
            status = self._asked("GET", name, wanted, view, time.monotonic() + seconds)
            if status not in _USUAL:
                raise WireError("it refuses our token" if status == _UNAUTHORIZED else f"it answers {status}")
        except OSError as error:
            self._rest(SILENT, str(error) or type(error).__name__)
            return 0
        with self._lock:
            self._failures_in_a_row = 0
            if status == _PARTIAL:
                self._stats.pieces += 1
                self._stats.bytes += len(view)
        return status

    def forget(self, name: str, begin: int, end: int, seconds: float) -> None:
        """Ask it to forget its copy of these bytes; if it does not answer, they stay its problem."""
        wanted = {"Range": f"bytes={begin}-{end - 1}", "Cache-Control": "no-cache"}
        try:
            self._asked("HEAD", name, wanted, memoryview(b""), time.monotonic() + seconds)
        except OSError as error:
            logger.debug("peer %s: %s", self.address, error)

    def was_wrong(self, name: str, begin: int, end: int) -> None:
        """It gave wrong bytes: it is named, and left alone for long."""
        with self._lock:
            seconds = WRONG.seconds(self._stats.wrong)
            self._stats.wrong += 1
            self._rests_until = max(self._rests_until, self._clock() + seconds)
        logger.warning(
            "peer %s gave wrong bytes %d-%d of object %s and is not asked for %.0f minutes",
            self.address,
            begin,
            end,
            name,
            seconds / 60,
        )

    def start_after_fork(self) -> None:
        """Leave the connections to the process that made them."""
        self._lock = threading.Lock()
        for wire in self._idle:
            wire.close()
        self._idle = []

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    def _rest(self, rest: Rest, why: str) -> None:
        self.close()
        with self._lock:
            seconds = rest.seconds(self._failures_in_a_row)
            if self.rests():  # others that were asking at the same time have seen the same failure
                return
            self._failures_in_a_row += 1
            self._stats.failures += 1
            self._rests_until = self._clock() + seconds
        logger.info("peer %s is not asked for %.0f s: %s", self.address, seconds, why)

    def _asked(self, method: str, name: str, wanted: dict[str, str], view: memoryview, deadline: float) -> int:
        """The status of the answer. A connection that was kept may have been closed meanwhile: then on a new one."""
        with self._lock:
            wire = self._idle.pop() if self._idle else None
        if wire is not None:
            try:
                return self._exchange(wire, method, name, wanted, view, deadline)
            except TimeoutError:
                raise
            except OSError:
                self.close()
        return self._exchange(self._connected(deadline), method, name, wanted, view, deadline)

    def _exchange(
        self, wire: Wire, method: str, name: str, wanted: dict[str, str], view: memoryview, deadline: float
    ) -> int:
        try:
            wire.send(message(f"{method} /objects/{name} HTTP/1.1", {**self._headers, **wanted}), deadline)
            head = wire.receive_head(deadline)
            if head is None:
                raise WireError("it closed the connection")
            status, size = _status(head), head.headers.get("content-length")
            if status == _PARTIAL:
                if size != str(len(view)):
                    raise WireError("it gives another range than was asked for")
                wire.receive_into(view, deadline)
            elif not (status == _OK and method == "HEAD") and size != "0":
                raise WireError("it gives bytes that were not asked for")
        except BaseException:
            wire.close()
            raise
        self._put_back(wire, head)
        return status

    def _connected(self, deadline: float) -> Wire:
        seconds = max(min(CONNECT_SECONDS, deadline - time.monotonic()), 0.001)
        connection = socket.create_connection(self._place, seconds)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._place[0])
        except BaseException:
            connection.close()
            raise
        return Wire(connection)

    def _put_back(self, wire: Wire, head: Head) -> None:
        with self._lock:
            if head.headers.get("connection") != "close" and len(self._idle) < MOST_IDLE_CONNECTIONS:
                self._idle.append(wire)
                return
        wire.close()


def _status(head: Head) -> int:
    found = _STATUS.fullmatch(head.line)
    if found is None:
        raise WireError("it does not speak HTTP")
    return int(found[1])
