"""The memory depot of another node, read through its server (`peer_server.py`). Nothing is written there.

What it has is told beforehand, so that only objects that are there are asked for.
"""

from collections.abc import Iterator, Mapping
from typing import NoReturn

from bushcraft.errors import StoreError, UnreachableError
from bushcraft.store.depot import Depot
from bushcraft.store.nodes.peers import Peers


class NodeMemory(Depot):
    """Objects (name → bytes) of the node at "HOST:PORT", which are read with the run's token.

    What it gives is verified by who reads it, as of every depot. Errors: `UnreachableError` where the node does not
    answer, or refuses the token.
    """

    def __init__(self, address: str, token: str, sizes: Mapping[str, int]) -> None:
        self.name = f"memory of {address}"
        self._peer = Peers([address], token=token)
        self._sizes = sizes

    def __str__(self) -> str:
        return self.name

    def has(self, name: str) -> bool:
        return name in self._sizes

    def size(self, name: str) -> int:
        if name not in self._sizes:
            raise self.missing(name)
        return self._sizes[name]

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        if end > self.size(name):
            raise self.short(name, self.size(name), end)
        data = self._peer.fetch(name, begin, end)
        if data is None:
            raise UnreachableError(f"the {self} does not give object {name}", "Another copy serves")
        return data

    def fetch_all(self, name: str) -> bytes:
        return self.fetch(name, 0, self.size(name))

    def holds(self, name: str, size: int) -> bool:
        return self._sizes.get(name) == size

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        yield from sorted((name, size) for name, size in self._sizes.items() if name.startswith(prefix))

    def ref_values(self, ref: str) -> list[tuple[int, str]]:  # noqa: ARG002 - the nodes agree on them otherwise
        return []

    def refs(self, prefix: str = "") -> list[str]:  # noqa: ARG002
        return []

    def close(self) -> None:
        """End the connections."""
        self._peer.close()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise StoreError(f"the {self} is only read", "Write to a depot of the store")

    store_bytes = store_file = new_file = add_ref = remove_object = remove_ref = _refuse
