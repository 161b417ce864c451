"""The little of HTTP/1.1 that peers speak with each other, in bounded time and memory.

A request is `GET` or `HEAD /objects/NAME` with one `Range: bytes=FIRST-LAST` and without a body; an answer has its
length. Every exchange ends at a deadline, however slowly the other side drips.
"""

import os
import select
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

_MOST_HEAD_BYTES = 8192
_MOST_HEADERS = 64
_END = b"\r\n\r\n"


class WireError(OSError):
    """The other side closed, or does not speak as it should."""


@dataclass(frozen=True)
class Head:
    """The first line of a message and its headers, whose names are in lower case."""

    line: str
    headers: Mapping[str, str]


class Buffer:
    """`size` bytes that may be written in any order through `view`, and are then taken as `bytes` without a copy."""

    def __init__(self, size: int) -> None:
        self._file = BytesIO()
        if size:
            self._file.seek(size - 1)
            self._file.write(b"\0")
        self.view = self._file.getbuffer()

    def take(self) -> bytes:
        self.view.release()
        return self._file.getvalue()


class Wire:
    """One end of a connection. Deadlines are of `time.monotonic`. Errors of all methods: `OSError`."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._ahead = bytearray()
        """Received, not yet used."""

    def receive_head(self, deadline: float, idle_until: float | None = None) -> Head | None:
        """The next message's head; None if the other side closed before it. Its first byte may come `idle_until`."""
        while (end := self._ahead.find(_END)) < 0:
            if len(self._ahead) >= _MOST_HEAD_BYTES:
                raise WireError("the head of a message is too long")
            self._wait(deadline if self._ahead or idle_until is None else idle_until)
            received = self.socket.recv(_MOST_HEAD_BYTES)
            if not received and not self._ahead:
                return None
            if not received:
                raise WireError("the connection was closed within a message")
            self._ahead += received
        head, self._ahead = self._ahead[:end], self._ahead[end + len(_END) :]
        return _parsed(bytes(head))

    def receive_into(self, view: memoryview, deadline: float) -> None:
        """Fill `view`."""
        n_done = min(len(view), len(self._ahead))
        view[:n_done] = self._ahead[:n_done]
        del self._ahead[:n_done]
        while n_done < len(view):
            self._wait(deadline)
            received = self.socket.recv_into(view[n_done:])
            if not received:
                raise WireError("the connection was closed within a message")
            n_done += received

    def send(self, data: bytes, deadline: float) -> None:
        self._wait(deadline)
        self.socket.sendall(data)

    def send_file(self, file: BinaryIO, size: int, deadline: float) -> None:
        """The first `size` bytes of a file: without a copy where the connection is plain."""
        if isinstance(self.socket, ssl.SSLSocket):
            data = os.pread(file.fileno(), size, 0)
            if len(data) < size:
                raise WireError("the file is shorter than it was")
            self.send(data, deadline)
            return
        self._wait(deadline)
        ready = select.poll()
        ready.register(self.socket, select.POLLOUT)
        n_done = 0
        while n_done < size:
            try:
                sent = os.sendfile(self.socket.fileno(), file.fileno(), n_done, size - n_done)
            except BlockingIOError:
                if not ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                    raise TimeoutError("the other side does not read") from None
                continue
            if not sent:
                raise WireError("the file is shorter than it was")
            n_done += sent

    def close(self) -> None:
        self.socket.close()

    def _wait(self, deadline: float) -> None:
        """The next operation of the socket ends by the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline is over")
        self.socket.settimeout(left)


def message(line: str, headers: Mapping[str, str | int]) -> bytes:
    """The head of a message."""
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def address_of(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; `ValueError` if that is not one. An IPv6 host stands in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _parsed(head: bytes) -> Head:
    line, *rest = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for field in rest[:_MOST_HEADERS]:
        name, colon, value = field.partition(":")
        if not colon or name != name.strip():
            raise WireError("a header is not one")
        headers[name.lower()] = value.strip()
    return Head(line, headers)
