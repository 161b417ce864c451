"""Gives the other nodes of a cluster pieces of objects over HTTP: from this node's cache, or read from the depots once.

    GET  /objects/NAME   Range: bytes=FIRST-LAST   Authorization: Bearer TOKEN    → 206
    HEAD /objects/NAME                                                            → 200, Content-Length

A piece has at most `BLOCK` bytes. `Cache-Control: no-cache` on either means that this node's copy was wrong: it is
forgotten, a `GET` reads it again. 401 wrong token, 404 no such object, 416 no such range, 503 busy, or the depots do
not answer; all else is refused. The bytes are as the depots gave them: who asks has the checksum.
"""

import contextlib
import hmac
import re
import signal
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.nodes.cache import Cache
from bushcraft.store.nodes.peer_listener import PeerListener
from bushcraft.store.nodes.peer_wire import Head, Wire, address_of, message
from bushcraft.store.nodes.rendezvous_hash import BLOCK
from bushcraft.store.nodes.single_flight import SingleFlight

MOST_ORIGIN_READS = 16
"""At once: what the depots are asked for lies in memory until it is sent."""
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
ORIGIN_SECONDS = 60.0
IDLE_SECONDS = 300.0

_REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}
_REQUEST = re.compile(r"([A-Z]+) (\S+) HTTP/1\.1")
_OBJECT = re.compile(r"/objects/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")


class Origin(Protocol):
    """What a depot gives, as far as a peer needs it."""

    def fetch(self, name: str, begin: int, end: int) -> bytes: ...

    def size(self, name: str) -> int: ...


@dataclass
class ServerStats:
    """Since the start: pieces and bytes given, and how many pieces of how many bytes were read from the depots."""

    requests: int = 0
    refused: int = 0
    bytes_sent: int = 0
    origin_reads: int = 0
    origin_bytes: int = 0


class PeerServer:
    """Serves on "HOST:PORT" (port 0: any, see `address`) from `start` to `close`.

    `origin` is read without peers, or two nodes might wait for each other. `tls` has the certificate of this node.
    Errors: `StoreError` if the address cannot be had.
    """

    def __init__(
        self, origin: Origin, address: str, token: str, cache: Cache | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.stats = ServerStats()
        self._origin, self._cache, self._token = origin, cache, token.strip().encode()
        self._flights = SingleFlight(ORIGIN_SECONDS)
        self._origin_reads = threading.BoundedSemaphore(MOST_ORIGIN_READS)
        self._lock = threading.Lock()
        try:
            self._server = PeerListener(address_of(address), self._serve_connection, tls)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot serve objects on {address}: {error}", "Give a free HOST:PORT of this node"
            ) from None

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> "PeerServer":
        """Serve in a thread until `close`."""
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="peer server", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop, and end the connections."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "PeerServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # A connection

    def _serve_connection(self, wire: Wire) -> None:
        while True:
            now = time.monotonic()
            head = wire.receive_head(now + IDLE_SECONDS + HEAD_SECONDS, now + IDLE_SECONDS)
            if head is None:
                return
            self._answer(wire, head)

    def _answer(self, wire: Wire, head: Head) -> None:
        try:
            name, piece, is_get = self._understood(head)
            if "no-cache" in head.headers.get("cache-control", "") and piece and self._cache:
                self._cache.blame(name, *piece)
            if is_get and piece:
                self._send_piece(wire, name, *piece)
            else:
                _send_head(wire, 200, self._origin.size(name))
        except _RefusedError as refusal:
            self._refuse(wire, refusal.status)
            if refusal.ends:
                raise
        except MissingObjectError:
            self._refuse(wire, 404)
        except CorruptObjectError:  # it is shorter
            self._refuse(wire, 416)
        except StoreError:
            self._refuse(wire, 503)

    def _understood(self, head: Head) -> tuple[str, tuple[int, int] | None, bool]:
        """Object, piece and whether its bytes are wanted."""
        given = head.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise _RefusedError(401)
        request = _REQUEST.fullmatch(head.line)
        if request is None or "content-length" in head.headers or "transfer-encoding" in head.headers:
            raise _RefusedError(400)
        if request[1] not in ("GET", "HEAD"):
            raise _RefusedError(405)
        target = _OBJECT.fullmatch(request[2])
        if target is None:
            raise _RefusedError(404, ends=False)
        wanted = _RANGE.fullmatch(head.headers.get("range", ""))
        if wanted is None and request[1] == "GET":
            raise _RefusedError(400)
        piece = (int(wanted[1]), int(wanted[2]) + 1) if wanted else None
        if piece and not 0 < piece[1] - piece[0] <= BLOCK:
            raise _RefusedError(416, ends=False)
        return target[1], piece, request[1] == "GET"

    def _send_piece(self, wire: Wire, name: str, begin: int, end: int) -> None:
        lent = self._cache.lend(name, begin, end) if self._cache else None
        data = self._read_once(name, begin, end) if lent is None else b""
        deadline = time.monotonic() + BODY_SECONDS
        with lent or contextlib.nullcontext():
            _send_head(wire, 206, end - begin, f"bytes {begin}-{end - 1}/*")
            if lent is not None:
                wire.send_file(lent, end - begin, deadline)
            else:
                wire.send(data, deadline)
        with self._lock:
            self.stats.requests += 1
            self.stats.bytes_sent += end - begin

    def _refuse(self, wire: Wire, status: int) -> None:
        with self._lock:
            self.stats.refused += 1
        _send_head(wire, status, 0)

    # The depots

    def _read_once(self, name: str, begin: int, end: int) -> bytes:
        """However many ask for it at once, the depots are asked for a piece by one of them."""
        return self._flights.result((name, begin, end), lambda: self._read_through(name, begin, end))

    def _read_through(self, name: str, begin: int, end: int) -> bytes:
        kept = self._cache.fetch(name, begin, end) if self._cache else None
        if kept is not None:  # another has brought it since we looked
            return kept
        if not self._origin_reads.acquire(timeout=ORIGIN_SECONDS):
            raise UnreachableError(f"object {name}: too many reads wait for the depots", "Wait until they answer")
        try:
            data = self._origin.fetch(name, begin, end)
        finally:
            self._origin_reads.release()
        with self._lock:
            self.stats.origin_reads += 1
            self.stats.origin_bytes += len(data)
        if self._cache:  # unverified: a reader that finds it wrong says so, and it is forgotten
            self._cache.keep(name, begin, end, data)
        return data


def serve(
    origin: Origin,
    address: str,
    token: str,
    cache: Cache | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, with TLS if a certificate (PEM) is given. For the process of a node's agent.

    Errors: `StoreError` if the address, the certificate or its key cannot be used.
    """
    ended = threading.Event()
    with PeerServer(origin, address, token, cache, server_tls(certificate, key) if certificate else None):
        before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
        ended.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def server_tls(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """The certificate (PEM) of this node; `key` where it is a file of its own. Errors: `StoreError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise StoreError(f"cannot use certificate {certificate}: {error.strerror or error}", "Give PEM files") from None
    return context


class _RefusedError(OSError):
    """An answer without bytes; it `ends` the connection where the other side may not speak our language."""

    def __init__(self, status: int, ends: bool = True) -> None:
        super().__init__(_REASONS[status])
        self.status = status
        self.ends = ends


def _send_head(wire: Wire, status: int, size: int, content_range: str | None = None) -> None:
    headers: dict[str, str | int] = {"Content-Length": size}
    if content_range is not None:
        headers["Content-Range"] = content_range
    wire.send(message(f"HTTP/1.1 {status} {_REASONS[status]}", headers), time.monotonic() + HEAD_SECONDS)
