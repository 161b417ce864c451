"""What is in a checkpoint and where it lies, without reading its tensors."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from blake3 import blake3

from bushcraft.checkpoint.manifest import CheckpointManifest, Chunk, TensorEntry
from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots


@dataclass(frozen=True)
class Group:
    """Tensors whose names begin alike, such as `model` or `optimizer/exp_avg`."""

    name: str
    dtypes: tuple[str, ...]
    tensors: int
    elements: int
    bytes: int


def groups(manifest: CheckpointManifest) -> list[Group]:
    """The tensors by what stands in front of the last '/' of their names, whatever layout wrote them."""
    by_name: dict[str, list[TensorEntry]] = {}
    for name, entry in sorted(manifest.tensors.items()):
        by_name.setdefault(name.rpartition("/")[0] or "other", []).append(entry)
    return [
        Group(
            name,
            tuple(sorted({entry.dtype for entry in entries})),
            len(entries),
            sum(math.prod(entry.shape) for entry in entries),
            sum(_n_bytes(entry.chunks) for entry in entries),
        )
        for name, entries in by_name.items()
    ]


def recipe_digest(manifest: CheckpointManifest) -> str:
    """The BLAKE3 hash of the recipe as canonical JSON: equal for equal recipes."""
    return blake3(json.dumps(manifest.recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tensor_objects(manifest: CheckpointManifest) -> dict[str, int]:
    """Each object that holds tensors, and how many of its bytes are this checkpoint's."""
    found: dict[str, int] = {}
    for chunk in _chunks(manifest):
        found[chunk.object] = found.get(chunk.object, 0) + chunk.end - chunk.begin
    return found


def all_objects(name: str, manifest: CheckpointManifest) -> list[str]:
    """All objects without which the checkpoint of that object name is not whole."""
    tokenizer = [manifest.tokenizer.object] if manifest.tokenizer else []
    named = [name, manifest.ledger, manifest.code, *manifest.datasets.values(), *tokenizer]
    return list(dict.fromkeys([*named, *sorted(tensor_objects(manifest))]))


def shared_bytes(manifest: CheckpointManifest, before: CheckpointManifest | None) -> int:
    """Bytes of tensors that lie in objects which the checkpoint before it has too."""
    there = tensor_objects(before) if before else {}
    return sum(n_bytes for name, n_bytes in tensor_objects(manifest).items() if name in there)


def tensor_bytes(manifest: CheckpointManifest) -> int:
    """Bytes of all tensors."""
    return _n_bytes(_chunks(manifest))


def members(depot: Depot) -> tuple[Depot, ...]:
    """The depots that a store is made of."""
    return depot.members if isinstance(depot, Depots) else (depot,)


class Places:
    """Which depots have an object; each is asked once, and one that does not answer has none."""

    def __init__(self, depot: Depot) -> None:
        self._members = members(depot)
        self._known: dict[str, list[str]] = {}

    def of(self, name: str) -> list[str]:
        """The names of the depots that have it."""
        if name not in self._known:
            self._known[name] = [member.name for member in self._members if _has(member, name)]
        return self._known[name]

    def of_all(self, names: Iterable[str]) -> list[str]:
        """The names of the depots that have all of them."""
        there = [member.name for member in self._members]
        for name in names:
            there = [depot for depot in there if depot in self.of(name)]
        return there


def _has(depot: Depot, name: str) -> bool:
    try:
        return depot.has(name)
    except StoreError:
        return False


def _chunks(manifest: CheckpointManifest) -> list[Chunk]:
    return [chunk for entry in manifest.tensors.values() for chunk in entry.chunks]


def _n_bytes(chunks: Iterable[Chunk]) -> int:
    return sum(chunk.end - chunk.begin for chunk in chunks)
