"""The saver's process: it hashes, writes and publishes what a rank has copied into shared memory.

It is another process, so that it never holds the trainer's interpreter, and it outlives a trainer that is killed: the
save in hand is brought to its end. While it has one it holds a lock, for which the next trainer of the run waits.
That of a node's first rank mirrors the memory of another node as well (`mirror.py`), where there are several.

Its arguments: the descriptor of the connection, the store, the lock, the run.
"""

import contextlib
import fcntl
import os
import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from bushcraft.checkpoint.contents import tensor_objects
from bushcraft.checkpoint.manifest import CheckpointManifest, TensorEntry, read_manifest, write_manifest
from bushcraft.checkpoint.mirror_request import InMemory, MirrorRequest
from bushcraft.checkpoint.objects import Known, Piece, assemble, known_chunks, write_files
from bushcraft.errors import BushcraftError, StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.local import LocalDepot
from bushcraft.store.memory import add_newest, create_memory, keep_only
from bushcraft.store.workspace import Store

if TYPE_CHECKING:
    from bushcraft.checkpoint.mirror import Mirror

NICENESS = 5
"""Training comes first where cores are short."""


@dataclass(frozen=True)
class PublishRequest:
    """Publish the checkpoint of all ranks. Answered by `Published`."""

    manifest: CheckpointManifest
    in_memory: CheckpointManifest
    """The same over the objects of the memory depot."""
    blobs: tuple[bytes, ...]
    """What it refers to and is not stored yet: the ledger."""
    failure: StoreError | None = None
    """Why not all is durable: then it is published in memory alone."""


@dataclass(frozen=True)
class WriteRequest:
    """Write a snapshot. Answered by `Written`."""

    paths: tuple[Path, ...]
    pieces: tuple[Piece, ...]
    entries: dict[str, TensorEntry]
    """The tensors, without their chunks."""
    previous: str | None
    """The durable checkpoint before, whose chunks need not be written again."""
    previous_is_last: bool
    """Whether that is the one that this process wrote last."""
    alone: PublishRequest | None
    """Of a single rank: publish at once, with these tensors. Answered by `Published` then."""


@dataclass(frozen=True)
class Written:
    """What became of a rank's tensors."""

    entries: dict[str, TensorEntry]
    in_memory: dict[str, TensorEntry]
    failure: StoreError | None
    """Why they are not durable."""
    linked: dict[str, int]
    """Object → bytes: what the memory depot of this node has of it."""
    notes: tuple[str, ...] = ()
    """What a person should know of the mirror."""


@dataclass(frozen=True)
class Published:
    """The object name of the checkpoint's manifest, or why there is none."""

    name: str | None
    failure: BushcraftError | None = None
    in_memory: InMemory | None = None
    """Where other nodes find it; None if it is not in memory."""


@dataclass(frozen=True)
class ServeRequest:
    """Give other nodes, which know the token, what this node's memory depot has. Answered by `Serving`."""

    address: str
    """HOST:PORT; port 0: any."""
    token: str


@dataclass(frozen=True)
class Serving:
    """HOST:PORT, or None if there is no memory depot, or that address cannot be had."""

    address: str | None


Request = WriteRequest | PublishRequest | ServeRequest
Answer = Written | Published | Serving


def main() -> None:
    """Serve one trainer until it closes the connection or dies; then the process ends."""
    _serve()
    os._exit(0)  # all is durable, and threads of obstore can abort an interpreter that is taken down


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which saves before it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    connection = Connection(int(sys.argv[1]))
    store = Store.open(Path(sys.argv[2]))
    Path(sys.argv[3]).parent.mkdir(parents=True, exist_ok=True)  # on a node that does not share the first one's disk
    with Path(sys.argv[3]).open("ab") as lock:
        server = Server(store, create_memory(store.root, sys.argv[4]))
        while True:
            try:
                request = connection.recv()
                if isinstance(request, MirrorRequest):
                    server.follow(request)
                    continue
                fcntl.flock(lock, fcntl.LOCK_SH)
                answer = server.answer(request)
                fcntl.flock(lock, fcntl.LOCK_UN)
                connection.send(answer)
            except (EOFError, OSError):
                return


class Server:
    """Answers requests one after another."""

    def __init__(self, store: Store, memory: LocalDepot | None) -> None:
        self._depot: Depot = store.depot
        self._memory = memory
        self._mirror: Mirror | None = None
        self._last: dict[str, TensorEntry] = {}

    def follow(self, request: MirrorRequest) -> None:
        """Mirror that checkpoint beside what else there is to do; there is no answer."""
        if self._mirror is not None:
            self._mirror.follow(request)

    def answer(self, request: Request) -> Answer:
        """What the request asks for; failures are part of the answer."""
        if isinstance(request, ServeRequest):
            return self._serve(request)
        if isinstance(request, PublishRequest):
            return self._publish(request)
        written = self._write(request)
        if request.alone is None:
            return written
        return self._publish(
            replace(
                request.alone,
                manifest=replace(request.alone.manifest, tensors=written.entries),
                in_memory=replace(request.alone.in_memory, tensors=written.in_memory),
                failure=written.failure,
            )
        )

    def _serve(self, request: ServeRequest) -> Serving:
        from bushcraft.checkpoint.mirror import Mirror  # with a server: where there is one node, we start without it

        if self._memory is None:
            return Serving(None)
        try:
            self._mirror = Mirror(self._memory, request.address, request.token)
        except StoreError:
            return Serving(None)
        return Serving(self._mirror.address)

    def _write(self, request: WriteRequest) -> Written:
        files = write_files(self._depot, list(request.paths), request.pieces, self._known_of(request))
        linked: dict[str, int] = {}
        if self._memory:
            with contextlib.suppress(OSError, StoreError):  # a restart is slower then
                for path, file in zip(request.paths, files, strict=True):
                    _link(path, self._memory, file.whole)
                    linked[file.whole] = path.stat().st_size
        failure = next((file.failure for file in files if file.failure), None)
        entries, in_memory = (assemble(request.entries, files, whole) for whole in (False, True))
        self._last = entries if failure is None else {}
        return Written(entries, in_memory, failure, linked, self._mirror.notes() if self._mirror else ())

    def _known_of(self, request: WriteRequest) -> Known:
        if request.previous is None:
            return {}
        if request.previous_is_last and self._last:
            return known_chunks(self._last)
        try:
            return known_chunks(read_manifest(self._depot, request.previous).tensors)
        except BushcraftError:
            return {}  # all is written again

    def _publish(self, request: PublishRequest) -> Published:
        name: str | None = None
        failure: BushcraftError | None = request.failure
        if failure is None:
            try:
                for blob in request.blobs:
                    self._depot.put_bytes(blob)
                name = write_manifest(self._depot, request.manifest)
            except BushcraftError as error:
                failure = error
        return Published(name, failure, self._remember(request, is_durable=name is not None))

    def _remember(self, request: PublishRequest, is_durable: bool) -> InMemory | None:
        """Publish in memory what is there; a memory that is full only makes a restart slower."""
        if self._memory is None:
            return None
        ref = f"checkpoints/{request.manifest.run}"
        try:
            sizes = {self._memory.put_bytes(blob): len(blob) for blob in request.blobs}
            number = self._number_of(self._memory, ref, is_durable)
            name = write_manifest(_Numbered(self._memory.root, number), request.in_memory)
            if self._mirror is None:  # else it knows which part is this node's
                self._keep_whole_ones(self._memory, ref, set(sizes))
            return InMemory(number, name, {**sizes, name: self._memory.size(name)})
        except BushcraftError:
            return None

    def _number_of(self, memory: LocalDepot, ref: str, is_durable: bool) -> int:
        """The number that the newest has in the store; of what it has not taken, one after all that are known."""
        stored: list[tuple[int, str]] = []
        with contextlib.suppress(StoreError):  # it does not answer, which is why we are asked
            stored = self._depot.ref_values(ref)
        known = stored if is_durable else [*stored, *memory.ref_values(ref)]
        return max((number for number, _ in known), default=0) + (not is_durable)

    def _keep_whole_ones(self, memory: LocalDepot, ref: str, blobs: set[str]) -> None:
        needed: set[str] = set()
        for number, name in memory.history(ref):
            objects = set(tensor_objects(read_manifest(memory, name)))
            if all(map(memory.has, objects)):
                needed |= objects | {name}
            else:
                memory.remove_ref(ref, number, name)
        keep_only(memory, needed | blobs)


class _Numbered(LocalDepot):
    """Publishes under a number that counts with the store's."""

    def __init__(self, root: Path, number: int) -> None:
        super().__init__(root, "memory")
        self._number = number

    def publish(self, ref: str, name: str) -> int:
        add_newest(self, ref, self._number, name)
        return self._number


def _link(path: Path, memory: LocalDepot, name: str) -> None:
    """Make the file an object; it is the one no longer that it was when it held another snapshot."""
    inode, target = path.stat().st_ino, memory.path(name)
    for other, _ in list(memory.objects()):
        if memory.path(other).stat().st_ino == inode:
            memory.remove_object(other)
    target.parent.mkdir(exist_ok=True)
    os.link(path, target)
