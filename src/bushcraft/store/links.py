"""Which objects an object refers to, and so which ones a reference keeps.

Only JSON objects refer to others. The rooms whose formats these are register what they name; a JSON object of an
unknown kind refers to whatever in it is the name of an object. A format of ours that nobody registered is an error:
it may name objects in ways that only its room can read.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot

LARGEST_DOCUMENT = 2**30
"""Bytes; larger objects are taken for data, which refers to nothing."""
_NAME = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{64}(?![0-9a-zA-Z])")


class Links(NamedTuple):
    """What a document refers to."""

    data: Iterable[str] = ()
    """Objects that refer to nothing themselves: they need not be read to find out."""
    documents: Iterable[str] = ()
    """Objects that may refer to others."""
    perhaps: Iterable[str] = ()
    """What looks like an object's name: a document, if there is such an object."""


LinksOf = Callable[[dict[str, Any], Depot], Links]
_FORMATS: dict[str, LinksOf] = {}


def register(kind: str, links: LinksOf) -> None:
    """Let `links(document, depot)` say what documents of the format `kind` refer to."""
    _FORMATS[kind] = links


def names_in(value: Any) -> set[str]:
    """Everything in a JSON value that looks like an object's name."""
    return set(_NAME.findall(value if isinstance(value, str) else json.dumps(value)))


class Closure:
    """Objects that are kept, and by which root each was reached first; about 150 bytes an object."""

    def __init__(self) -> None:
        self.broken: dict[str, StoreError] = {}
        """Documents that could not be read: what they refer to is not known."""
        self._labels: list[str] = []
        self._reached: dict[bytes, int] = {}
        self._followed: set[bytes] = set()

    def __contains__(self, name: str) -> bool:
        return bytes.fromhex(name) in self._reached

    def __len__(self) -> int:
        return len(self._reached)

    def __iter__(self) -> Iterator[str]:
        return (name.hex() for name in self._reached)

    def root(self, name: str) -> str:
        """By which root the object was reached first."""
        return self._labels[self._reached[bytes.fromhex(name)]]

    def add(self, depot: Depot, root: str, name: str) -> None:
        """Add the object, and all that it refers to, as kept by `root`. Errors: `UnreachableError`."""
        self._labels.append(root)
        open_documents = [name]
        while open_documents:
            document = open_documents.pop()
            self._reach(document)
            if bytes.fromhex(document) in self._followed:
                continue
            self._followed.add(bytes.fromhex(document))
            try:
                links = links_of(depot, document)
                for leaf in links.data:
                    self._reach(leaf)
                open_documents += links.documents
                open_documents += [other for other in links.perhaps if other in self or depot.has(other)]
            except StoreError as error:
                self.broken[document] = error

    def _reach(self, name: str) -> None:
        self._reached.setdefault(bytes.fromhex(name), len(self._labels) - 1)


def closure(depot: Depot, roots: Iterable[tuple[str, str]]) -> Closure:
    """All that the roots (what it is, object name) keep; `roots_of` gives those of references."""
    found = Closure()
    for root, name in roots:
        found.add(depot, root, name)
    return found


def roots_of(depot: Depot, refs: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """Each value of the references (of all, if none are given), as "NAME@NUMBER" and the object's name."""
    for ref in depot.refs() if refs is None else refs:
        for number, name in depot.history(ref):
            yield f"{ref}@{number}", name


def links_of(depot: Depot, name: str) -> Links:
    """What one object refers to. Errors: `StoreError` if it cannot be read, or nobody registered its format."""
    if depot.size(name) > LARGEST_DOCUMENT:
        return Links()
    data = depot.read(name)
    if data.lstrip()[:1] not in (b"{", b"["):
        return Links()
    try:
        document = json.loads(data)
    except ValueError:
        return Links()
    kind = document.get("format") if isinstance(document, dict) else None
    if isinstance(kind, str) and kind in _FORMATS:
        return _FORMATS[kind](document, depot)
    if isinstance(kind, str) and kind.startswith("bushcraft-"):
        raise StoreError(f"object {name} has the format {kind}, which is unknown here", "Install a newer bushcraft")
    return Links(perhaps=names_in(document))


def _folder(document: dict[str, Any], _: Depot) -> Links:
    names = [entry["object"] for entry in document["files"] if entry.get("object")]
    return Links(data=names, perhaps=names_in({**document, "files": []}))


register("bushcraft-folder", _folder)
