"""Accepts the connections of peers: a bounded number, each in a thread of its own, with TLS if it has a certificate."""

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator

from bushcraft.store.nodes.peer_wire import Wire, message

MOST_CONNECTIONS = 512
HANDSHAKE_SECONDS = 10.0


class PeerListener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Gives each connection to `serve`, which ends it by returning or by an `OSError`; too many are refused.

    Errors: `OSError` if the address cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        serve: Callable[[Wire], None],
        tls: ssl.SSLContext | None = None,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._serve, self._tls = serve, tls
        self._places = threading.BoundedSemaphore(most_connections)
        self._open: set[socket.socket] = set()
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, socketserver.BaseRequestHandler)

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if not self._places.acquire(blocking=False):
            _refuse(request)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the machine gives no more threads
            self._places.release()
            self.shutdown_request(request)

    def finish_request(self, request: object, _: object) -> None:
        assert isinstance(request, socket.socket)
        try:
            with contextlib.suppress(OSError):
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._secured(request) as connection, self._listed(connection):
                    self._serve(Wire(connection))
        finally:
            self._places.release()

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _secured(self, connection: socket.socket) -> socket.socket:
        if self._tls is None:
            return connection
        connection.settimeout(HANDSHAKE_SECONDS)
        return self._tls.wrap_socket(connection, server_side=True)

    @contextlib.contextmanager
    def _listed(self, connection: socket.socket) -> Iterator[None]:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)


def _refuse(connection: socket.socket) -> None:
    connection.settimeout(0)
    with contextlib.suppress(OSError):
        connection.send(message("HTTP/1.1 503 Service Unavailable", {"Content-Length": 0, "Connection": "close"}))
