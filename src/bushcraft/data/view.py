"""Data sets as files: `datasets/NAME/` with the newest manifest, the tokenizer, and the packs of each split."""

from collections.abc import Callable
from functools import lru_cache

from bushcraft.data.manifest import DatasetManifest, PackTable, Split, read_manifest
from bushcraft.store.depot import Depot
from bushcraft.store.outside.blocks import ObjectFile
from bushcraft.store.outside.tree import Directory, Fixed, Listing, Node, references, register

_KEPT = 8
"""Views of data sets that are kept for the next look."""


def datasets(depot: Depot) -> Directory:
    """All data sets."""
    view = lru_cache(_KEPT)(lambda name: dataset(depot, name))

    def newest(ref: str) -> Directory:
        name = depot.latest(ref)
        return Fixed({}) if name is None else view(name)

    return references(depot, "datasets", newest)


def dataset(depot: Depot, name: str) -> Directory:
    """The files of the data set whose manifest is that object. Errors: `DataError`, `StoreError`."""
    _, manifest = read_manifest(depot, name)
    objects = {"manifest.json": name, "tokenizer.json": manifest.tokenizer} | _chat_template(manifest)
    splits = {key: _packs(depot, split) for key, split in manifest.splits.items()}

    def child(file: str) -> Node | None:
        if file in objects:
            return ObjectFile(depot, objects[file], depot.size(objects[file]))
        return splits.get(file)

    return Listing(lambda: sorted([*objects, *splits]), child)


def _chat_template(manifest: DatasetManifest) -> dict[str, str]:
    template = manifest.examples and manifest.examples.chat_template
    return {"chat_template.jinja": template} if template else {}


def _packs(depot: Depot, split: Split) -> Directory:
    """`00000000.pack` and so on; the table of packs is read when one is asked for."""
    table: Callable[[], PackTable] = lru_cache(1)(lambda: PackTable(depot, split))

    @lru_cache(_KEPT)
    def pack(index: int) -> ObjectFile:
        entry = table()[index]
        return ObjectFile(depot, entry.object, entry.n_bytes)

    def child(name: str) -> Node | None:
        number = name.removesuffix(".pack")
        is_there = number.isdecimal() and name == _pack_name(int(number)) and int(number) < split.n_packs
        return pack(int(number)) if is_there else None

    return Listing(lambda: map(_pack_name, range(split.n_packs)), child)


def _pack_name(index: int) -> str:
    return f"{index:08d}.pack"


register("datasets", datasets)
