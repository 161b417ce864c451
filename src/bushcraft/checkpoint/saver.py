"""A rank's side of an asynchronous save: copy the state into shared memory, and hear later what became of it.

At most one save is in hand, and there are as many copies as were asked for: memory does not grow when a disk is slow.
"""

import contextlib
import fcntl
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.checkpoint.mirror_request import MirrorRequest
from bushcraft.checkpoint.placement import Block, file_sizes, place
from bushcraft.checkpoint.saver_process import Published, PublishRequest, ServeRequest, WriteRequest, Written
from bushcraft.checkpoint.snapshot import Snapshot
from bushcraft.errors import CheckpointError, RunError, StoreError
from bushcraft.parallel.box import Part
from bushcraft.store.memory import make_home, memory_root
from bushcraft.store.workspace import Store

LOCK = "saver.lock"
"""In the run's directory: held while a save is in hand."""


def wait_for_saves(run: Path, say: Callable[[str], None], seconds: float = 600.0) -> None:
    """Wait for the saves that a killed trainer of this run has left in hand. Errors: `RunError` after so long."""
    if not (run / LOCK).exists():
        return
    with (run / LOCK).open("ab") as lock:
        for attempt in range(int(seconds * 20)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt == 10:
                    say("waiting for the checkpoint that is still being written")
                time.sleep(0.05)
    raise RunError(f"a save of run {run.name!r} has not ended for {seconds:g} s", "See which process holds " + LOCK)


class Saver:
    """Saves one rank's parts through a process of its own."""

    def __init__(self, store: Store, run: str, rank: int, n_snapshots: int) -> None:
        self._store = store
        self._lock = store.runs / run / LOCK
        root = memory_root(store.root, run) if make_home() else store.runs / run / "snapshots"
        self._run = run
        self._snapshots = [Snapshot(root / "slots" / f"{rank}-{number}") for number in range(n_snapshots)]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._outcome: Written | Published | None = None
        self._preparing: threading.Thread | None = None
        self._serving: ServeRequest | None = None
        self.busy = False
        """Whether a request is not answered yet."""
        self.stall = 0.0
        """Seconds that the last `begin` took."""

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Start the process and begin to reserve the memory, so that the first save is as quick as the others."""
        self._connect()
        blocks = place(parts)

        def reserve() -> None:
            with contextlib.suppress(StoreError):  # the first save says it
                self._snapshots[0].prepare(blocks)
                more = [snapshot for snapshot in self._snapshots[1:] if self._reserved(snapshot, blocks)]
                self._snapshots = [self._snapshots[0], *more]

        self._preparing = threading.Thread(target=reserve, name="snapshots", daemon=True)
        self._preparing.start()

    def _reserved(self, snapshot: Snapshot, blocks: list[Block]) -> bool:
        """Reserve memory for one more snapshot, if it leaves as much to others."""
        if psutil.virtual_memory().available < 2 * sum(file_sizes(blocks)):
            return False
        try:
            snapshot.prepare(blocks)
        except StoreError:
            snapshot.release()
            return False
        return True

    def begin(
        self,
        parts: Mapping[str, Part],
        previous: str | None,
        previous_is_last: bool = False,
        alone: PublishRequest | None = None,
    ) -> None:
        """Copy the parts; the rest goes on without us. Nothing may be in hand."""
        assert not self.busy
        began = time.perf_counter()
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        blocks = place(parts)
        snapshot = self._snapshots.pop(0)
        self._snapshots.append(snapshot)
        try:
            snapshot.prepare(blocks)
        except StoreError as error:  # as one that could not be written
            self._outcome = Published(None, error)
            return
        snapshot.take(parts, blocks)
        self.stall = time.perf_counter() - began
        self._request(
            WriteRequest(
                paths=tuple(snapshot.paths),
                pieces=tuple(piece for block in blocks for piece in block.pieces),
                entries={
                    name: TensorEntry(part.global_shape, str(part.tensor.dtype).removeprefix("torch."), ())
                    for name, part in parts.items()
                },
                previous=previous,
                previous_is_last=previous_is_last,
                alone=alone,
            )
        )

    def publish(self, request: PublishRequest) -> None:
        """Publish what all ranks have written."""
        self._request(request)

    def serve(self, host: str, token: str) -> str | None:
        """Give other nodes what this node's memory depot has: at which "HOST:PORT"; None if that cannot be."""
        try:
            address = _served(self._connect(), ServeRequest(f"{host}:0", token))
        except (EOFError, OSError):
            self._died()
            return None
        self._serving = ServeRequest(address, token) if address else None
        return address

    def mirror(self, request: MirrorRequest) -> None:
        """Have the process mirror another node, if it serves; nobody waits for it."""
        if self._serving is not None and self._connection is not None:
            with contextlib.suppress(OSError):  # it died: the next one mirrors the next checkpoint
                self._connection.send(request)

    def outcome(self, seconds: float = 0.0) -> Written | Published | None:
        """What became of the last request; None if that is not known after `seconds`."""
        if self.busy and self._connection is not None:
            try:
                if not self._connection.poll(seconds):
                    return None
                self._outcome = self._connection.recv()
            except (EOFError, OSError):
                self._outcome = Published(None, self._died())
            self.busy = False
        return self._outcome

    def release(self) -> None:
        """Give the memory of this rank back: its newest checkpoint is durable."""
        for snapshot in self._snapshots:
            snapshot.release()

    def close(self) -> None:
        """Let the process end, when it has done what it has in hand; the memory stays for a restart."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None and not self.busy:
            self._process.wait()
        self._process = None

    def _request(self, request: WriteRequest | PublishRequest) -> None:
        self._outcome, self.busy = None, True
        for _ in range(2):
            try:
                self._connect().send(request)
                return
            except (EOFError, OSError):  # it died since; another one is started
                self._died()
        self._outcome, self.busy = Published(None, self._died()), False

    def _connect(self) -> Connection:
        if self._connection is None:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-c", "from bushcraft.checkpoint.saver_process import main; main()"]
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(self._store.root), str(self._lock), self._run],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # it outlives a trainer that is killed with its group
                )
            self._connection = Connection(ours.detach())
            if self._serving is not None:  # at the address that the other nodes know
                _served(self._connection, self._serving)
        return self._connection

    def _died(self) -> CheckpointError:
        code = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            code = self._process.wait()
            self._process = None
        return CheckpointError(
            f"the process that saves has ended with code {code}", "Another one saves next; look at the kernel's log"
        )


def _served(connection: Connection, request: ServeRequest) -> str | None:
    connection.send(request)
    address: str | None = connection.recv().address
    return address
