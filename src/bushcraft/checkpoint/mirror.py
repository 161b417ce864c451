"""A node's memory holds the newest checkpoint of the node before it in the ring too: one node may be lost.

The saver's process of a node's first rank runs it, beside the steps and the saves: a server gives the other nodes what
this node's memory has; when a save has been concluded, a thread fetches what its ranks have not written here. Each
object is verified by its name. A mirror that fails costs nothing but the mirror.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping

import psutil

from bushcraft.checkpoint.mirror_request import MirrorRequest
from bushcraft.errors import StoreError
from bushcraft.store.local import LocalDepot
from bushcraft.store.memory import add_newest, remove_copies
from bushcraft.store.mend import copy_object
from bushcraft.store.nodes.node_memory import NodeMemory
from bushcraft.store.nodes.peer_server import PeerServer


def available_memory() -> int:
    """Bytes of host memory that may be had without swapping."""
    return int(psutil.virtual_memory().available)


class Mirror:
    """Serves `memory` on "HOST:PORT" (port 0: any, see `address`), and follows what it is asked for, the newest first.

    Only with the token is anything given or taken. Errors: `StoreError` if the address cannot be had.
    """

    def __init__(
        self, memory: LocalDepot, address: str, token: str, available: Callable[[], int] = available_memory
    ) -> None:
        self._memory, self._token, self._available = memory, token, available
        self._server = PeerServer(memory, address, token).start()
        self._requests: queue.SimpleQueue[MirrorRequest] = queue.SimpleQueue()
        self._there: list[MirrorRequest] = []
        """Those whose manifest is in this memory."""
        self._mirrored: Mapping[str, int] = {}
        self._notes: list[str] = []
        self._last_note: str | None = None
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    @property
    def address(self) -> str:
        return self._server.address

    def follow(self, request: MirrorRequest) -> None:
        """Mirror that checkpoint, soon."""
        self._requests.put(request)

    def notes(self) -> tuple[str, ...]:
        """What a person should know, and has not been told yet."""
        notes, self._notes = self._notes, []
        return tuple(notes)

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    def mirror(self, request: MirrorRequest) -> None:
        """Have the manifest, then the partner's objects; what belongs to older checkpoints goes."""
        try:
            self._copy(request.first, request.checkpoint.sizes)
            checkpoint = request.checkpoint
            add_newest(self._memory, f"checkpoints/{request.run}", checkpoint.number, checkpoint.manifest)
            self._there.append(request)
            if self._has_room(request):
                self._copy(request.partner, request.partners)
                self._mirrored = request.partners
                self._last_note = None
        except StoreError as error:
            self._note(type(error).__name__, f"{_is_not_mirrored(request)}: {error.message}")
        with contextlib.suppress(StoreError):
            self._prune(request.run)

    def _work(self) -> None:
        while True:
            request = self._requests.get()
            if self._requests.empty():  # else its bytes are overwritten before long
                self.mirror(request)

    def _copy(self, address: str, sizes: Mapping[str, int]) -> None:
        node = NodeMemory(address, self._token, sizes)
        try:
            for name in self._missing(sizes):
                copy_object(name, node, self._memory, self._memory)
        finally:
            node.close()

    def _missing(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {name: size for name, size in sizes.items() if not self._memory.has(name)}

    def _has_room(self, request: MirrorRequest) -> bool:
        """Whether as much is left to others, if need be without the mirror of the checkpoint before."""
        wanted = 2 * sum(self._missing(request.partners).values())
        if self._available() < wanted:
            self._mirrored = {}
            self._prune(request.run)
        if self._available() >= wanted:
            return True
        self._note("room", f"{_is_not_mirrored(request)}: {wanted / 2**30:.3g} GiB of memory are not free")
        return False

    def _prune(self, run: str) -> None:
        """Keep the checkpoints that this node has its part of, and the newest mirror."""
        self._there = [request for request in self._there if not self._missing(request.own)]
        manifests = {request.checkpoint.manifest for request in self._there}
        for number, name in self._memory.ref_values(ref := f"checkpoints/{run}"):
            if name not in manifests:
                self._memory.remove_ref(ref, number, name)
        needed = {name for request in self._there for name in request.checkpoint.sizes}
        remove_copies(self._memory, needed | set(self._mirrored))

    def _note(self, kind: str, text: str) -> None:
        """Once, until it has gone well again."""
        if kind != self._last_note:
            self._notes.append(text)
        self._last_note = kind


def _is_not_mirrored(request: MirrorRequest) -> str:
    return f"the checkpoint of position {request.position:,} is not mirrored in a second node's memory"
