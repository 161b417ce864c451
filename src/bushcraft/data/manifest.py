"""The manifest of a data set: tokenizer, splits, packs. Its BLAKE3 is the data set's identity.

The manifest is a JSON object in the depot. The packs of a split are two more objects: how many tokens each
has, 8 bytes a pack, read at once; and their entries, 104 bytes a pack, read and checked in groups when they
are needed. So 80,000 packs (20 TB) are opened as fast as eight. The reference `datasets/NAME` says which
manifest a name means today; a run remembers the manifest, not the name.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from bushcraft.errors import CorruptObjectError, DataError
from bushcraft.store.depot import Depot
from bushcraft.store.pack import PackEntry

VERSION = 2
"""Version 2 is version 1 with `examples`; what has none is written as version 1."""
_ENTRY_DTYPE = np.dtype(
    [
        ("object", "S32"),
        ("footer", "S32"),
        ("n_bytes", "<u8"),
        ("footer_bytes", "<u8"),
        ("n_tokens", "<u8"),
        ("n_documents", "<u8"),
        ("n_text_bytes", "<u8"),
    ]
)
_HASHES = ("object", "footer")
GROUP = 1024
"""Entries that are read and checked together."""
GROUP_BYTES = GROUP * _ENTRY_DTYPE.itemsize


@dataclass(frozen=True)
class Split:
    """The packs of one split (train, heldout) and their totals."""

    table: str
    """Object: tokens of each pack (u64), then the xxh3-128 of each group of entries."""
    entries: str
    """Object: the entry of each pack."""
    n_packs: int
    n_tokens: int
    n_documents: int
    n_text_bytes: int


@dataclass(frozen=True)
class ExampleFormat:
    """How documents that are examples are stored: the separator, then prompts and answers, each answer marked."""

    target_begin: int
    """The mark in front of an answer. Both are ids above the tokenizer's vocabulary, which no model sees."""
    target_end: int
    """The mark behind it."""
    longest: int
    """Tokens of the longest example, all but the separator: what run.sequence_length must be at least."""
    longest_name: str
    chat_template: str | None = None
    """Object name of the template by which conversations became text, if there was one."""


@dataclass(frozen=True)
class DatasetManifest:
    """Everything that identifies a data set; locations are no part of it."""

    name: str
    tokenizer: str
    """Object name of the tokenizer.json."""
    fingerprint: str
    """BLAKE3 of the canonical tokenizer.json: the same tokens for the same text."""
    vocab_size: int
    separator_id: int
    """The token in front of each document."""
    itemsize: int
    """Bytes of a token id in the packs: 2 or 4."""
    splits: dict[str, Split]
    baselines: dict[str, float] = field(default_factory=dict)
    """Bits per byte of other compressors on the held-out documents."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the builder wants to tell; no code depends on it."""
    examples: ExampleFormat | None = None
    """Of instruction data; None where documents are text."""

    @property
    def kind(self) -> Literal["text", "examples"]:
        """Whether a position of a run is a stretch of text, or one whole example."""
        return "examples" if self.examples else "text"


def split_from_packs(depot: Depot, packs: Iterable[PackEntry]) -> Split:
    """Store the table of `packs`, in their order."""
    packs = list(packs)
    entries = np.zeros(len(packs), _ENTRY_DTYPE)
    for column in _ENTRY_DTYPE.names or ():
        values = [getattr(pack, column) for pack in packs]
        entries[column] = [bytes.fromhex(v) for v in values] if column in _HASHES else values
    data = entries.tobytes()
    checksums = b"".join(xxhash.xxh3_128_digest(data[at : at + GROUP_BYTES]) for at in range(0, len(data), GROUP_BYTES))
    return Split(
        table=depot.put_bytes(entries["n_tokens"].tobytes() + checksums),
        entries=depot.put_bytes(data),
        n_packs=len(packs),
        n_tokens=sum(p.n_tokens for p in packs),
        n_documents=sum(p.n_documents for p in packs),
        n_text_bytes=sum(p.n_text_bytes for p in packs),
    )


class PackTable:
    """The packs of a split: how many tokens each has at once, its entry when it is asked for."""

    def __init__(self, depot: Depot, split: Split) -> None:
        self._depot = depot
        self._split = split
        data = depot.read(split.table)
        self.n_tokens: NDArray[np.int64] = np.frombuffer(data, "<u8", split.n_packs).astype(np.int64)
        """Tokens of each pack, (n_packs,)."""
        self._checksums = data[8 * split.n_packs :]
        self._groups: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self._split.n_packs

    def __getitem__(self, index: int) -> PackEntry:
        """The entry of one pack. Errors: IndexError, `CorruptObjectError`, `StoreError`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group, place = divmod(index, GROUP)
        if group not in self._groups:
            self._groups[group] = self._read_group(group)
        row = dict(zip(_ENTRY_DTYPE.names or (), self._groups[group][place].item(), strict=True))
        # numpy strips the trailing NULs of byte strings: pad the hashes to their 32 bytes again.
        return PackEntry(**{k: v.ljust(32, b"\0").hex() if k in _HASHES else v for k, v in row.items()})

    @cached_property
    def n_documents(self) -> NDArray[np.int64]:
        """Documents of each pack, (n_packs,): all entries are read for it. Errors as for one entry."""
        return np.array([self[i].n_documents for i in range(len(self))], np.int64)

    def _read_group(self, group: int) -> NDArray[Any]:
        begin = group * GROUP_BYTES
        end = min(begin + GROUP_BYTES, len(self) * _ENTRY_DTYPE.itemsize)
        expected = self._checksums[16 * group : 16 * group + 16]
        try:
            data = self._depot.read_range(
                self._split.entries, begin, end, lambda data: xxhash.xxh3_128_digest(data) == expected
            )
        except CorruptObjectError:
            raise CorruptObjectError(
                f"object {self._split.entries} is corrupted: pack entries, bytes {begin}-{end}",
                "It was not used. Restore it from a copy of the depot, or build the data again, which repairs it",
            ) from None
        return np.frombuffer(data, _ENTRY_DTYPE)


def write_manifest(depot: Depot, manifest: DatasetManifest) -> str:
    """Store the manifest and make `datasets/NAME` mean it; its object name. All packs must be in the depot."""
    about = asdict(manifest)
    if manifest.examples is None:
        del about["examples"]
    document = {"format": "bushcraft-dataset", "version": VERSION if manifest.examples else 1, **about}
    name = depot.put_bytes(json.dumps(document, indent=1, sort_keys=True).encode())
    depot.publish(f"datasets/{manifest.name}", name)
    return name


def read_manifest(depot: Depot, name_or_root: str) -> tuple[str, DatasetManifest]:
    """The data set of that name, or whose manifest is that object: (object name, manifest).

    Errors: `DataError` if there is none or it is of a later version; `CorruptObjectError`.
    """
    root = name_or_root if len(name_or_root) == 64 else depot.latest(f"datasets/{name_or_root}")
    if root is None:
        known = ", ".join(ref.removeprefix("datasets/") for ref in depot.refs("datasets")) or "none"
        raise DataError(
            f"there is no data set {name_or_root!r} in {depot} (known: {known})",
            f"Build it by `bushcraft data build {name_or_root} PATH…`",
        )
    document = json.loads(depot.read(root))
    if document.pop("format", None) != "bushcraft-dataset":
        raise DataError(f"object {root} is not a data set", "Name a data set or the object of its manifest")
    if (version := document.pop("version")) > VERSION:
        raise DataError(
            f"data set {name_or_root} has format {version}, this is for {VERSION}", "Install a newer bushcraft"
        )
    splits = {name: Split(**split) for name, split in document.pop("splits").items()}
    examples = document.pop("examples", None)
    return root, DatasetManifest(splits=splits, examples=examples and ExampleFormat(**examples), **document)
