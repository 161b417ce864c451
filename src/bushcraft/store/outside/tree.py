"""A store as a read-only tree, for mounts, fsspec and `bushcraft store ls`.

    folders/NAME/…        the newest folder of that name
    objects/HASH          every object
    refs/NAME/NUMBER      which object a value of a reference is

What only other rooms understand is theirs to show: a room's module `view` calls `register`, and so come
`checkpoints/` and `datasets/`.
"""

import importlib
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import bushcraft
from bushcraft.store.depot import OBJECT_NAME, Depot
from bushcraft.store.outside.blocks import BytesFile, File, ObjectFile
from bushcraft.store.outside.folder_manifest import FolderManifest, read_folder

FRESH_SECONDS = 5.0
"""So long a list of references, or what the newest value of one is, is not asked for again: a bucket answers late."""
_KEPT = 64
"""Views of large manifests, or objects with their checksums, that are kept for the next look."""


class Directory(ABC):
    """Names, and what stands behind each, made when it is asked for."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """All of them, each once. Errors: `BushcraftError`."""

    @abstractmethod
    def child(self, name: str) -> "Node | None":
        """What is there by that name, if anything is. Errors: `BushcraftError`."""


Node = Directory | File
View = Callable[[Depot], Directory]
"""Makes a part of the tree from a depot; it reads nothing before it is looked into."""


class Fixed(Directory):
    """A directory that is known."""

    def __init__(self, children: Mapping[str, Node]) -> None:
        self._children = children

    def names(self) -> Iterable[str]:
        return self._children

    def child(self, name: str) -> Node | None:
        return self._children.get(name)


class Listing(Directory):
    """A directory of two functions."""

    def __init__(self, names: Callable[[], Iterable[str]], child: Callable[[str], Node | None]) -> None:
        self._names = names
        self._child = child

    def names(self) -> Iterable[str]:
        return self._names()

    def child(self, name: str) -> Node | None:
        return self._child(name)


_views: dict[str, View] = {}


def register(top: str, view: View) -> None:
    """Show `view` of every depot as the directory `top` of its tree."""
    _views[top] = view


def tree(depot: Depot) -> Directory:
    """The tree of a depot."""
    for room in Path(bushcraft.__file__).parent.iterdir():
        if (room / "view.py").is_file():
            importlib.import_module(f"bushcraft.{room.name}.view")
    own = {"folders": folders, "objects": objects, "refs": refs}
    return Fixed({top: view(depot) for top, view in sorted((own | _views).items())})


def find(top: Directory, path: str) -> Node | None:
    """What is at a path, parted by '/', if anything is. Errors: `BushcraftError`."""
    node: Node | None = top
    for part in path.split("/"):
        if part:
            node = node.child(part) if isinstance(node, Directory) else None
    return node


K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A function whose results are kept for some seconds."""

    def __init__(
        self, load: Callable[[K], V], seconds: float = FRESH_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: K) -> V:
        with self._lock:
            known = self._kept.get(key)
        if known is not None and self._clock() < known[0] + self._seconds:
            return known[1]
        value = self._load(key)
        with self._lock:
            self._kept[key] = self._clock(), value
            self._kept.move_to_end(key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return value


class _References(Directory):
    """References as directories: in `a` stands what `show("a")` has, and a directory for each `a/…`."""

    def __init__(self, known: Callable[[], list[str]], ref: str, show: Callable[[str], Directory]) -> None:
        self._known = known
        self._ref = ref
        self._show = show

    def names(self) -> Iterable[str]:
        begin = f"{self._ref}/" if self._ref else ""
        below = {ref.removeprefix(begin).split("/")[0] for ref in self._known() if ref.startswith(begin)}
        own = self._show(self._ref).names() if self._ref in self._known() else ()
        return sorted({*own, *below})

    def child(self, name: str) -> Node | None:
        if self._ref in self._known() and (own := self._show(self._ref).child(name)) is not None:
            return own
        ref = f"{self._ref}/{name}" if self._ref else name
        if any(other == ref or other.startswith(f"{ref}/") for other in self._known()):
            return _References(self._known, ref, self._show)
        return None


def references(depot: Depot, top: str, show: Callable[[str], Directory]) -> Directory:
    """The references below `top` ("" for all) as directories, in each of them what `show` makes of its full name."""
    listed, shown = Remembered(depot.refs), Remembered(show)
    return _References(lambda: listed(top), top, shown)


def folders(depot: Depot) -> Directory:
    """The newest of each published folder."""
    of_manifest = lru_cache(_KEPT)(lambda name: _folder(depot, read_folder(depot, name)))

    def newest(ref: str) -> Directory:
        name = depot.latest(ref)
        return Fixed({}) if name is None else of_manifest(name)

    return references(depot, "folders", newest)


def _folder(depot: Depot, manifest: FolderManifest) -> Directory:
    root: dict[str, Node] = {}
    inside = {"": root}

    def directory(path: str) -> dict[str, Node]:
        if path not in inside:
            inside[path] = {}
            parent, _, name = path.rpartition("/")
            directory(parent)[name] = Fixed(inside[path])
        return inside[path]

    for path in manifest.directories:
        directory(path)
    for file in manifest.files:
        parent, _, name = file.path.rpartition("/")
        directory(parent)[name] = ObjectFile(depot, file.object, file.size, file.chunks, file.mode == 0o755)
    return Fixed(root)


def objects(depot: Depot) -> Directory:
    """Every object."""
    file = lru_cache(_KEPT)(lambda name: ObjectFile(depot, name, depot.size(name)))
    return Listing(
        lambda: (name for name, _ in depot.objects()),
        lambda name: file(name) if OBJECT_NAME.fullmatch(name) and depot.has(name) else None,
    )


def refs(depot: Depot) -> Directory:
    """The values of every reference; each holds the name of its object and a newline."""

    def values(ref: str) -> Directory:
        return Fixed({f"{number:08d}": BytesFile(f"{name}\n".encode()) for number, name in depot.history(ref)})

    return references(depot, "", values)
