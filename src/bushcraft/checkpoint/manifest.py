"""The manifest of a checkpoint: every tensor's global shape and the byte ranges that hold it.

The manifest is a JSON object in the depot. It says nothing of ranks: a chunk is a box (offset, shape) of the
global tensor, so any layout can read it. The references `checkpoints/RUN` are published only after all the
objects of a manifest are durable. Format: docs/reference/formats.md.
"""

import json
from dataclasses import dataclass
from typing import Any

from bushcraft.errors import CheckpointError
from bushcraft.store.depot import Depot

VERSION = 2
"""Version 2 is version 1 with `tokenizer`; what has none is written as version 1."""


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, stored row-major and little-endian at bytes [begin, end) of an object."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    object: str
    begin: int
    end: int
    xxh3_128: str


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its global shape, its dtype (torch's name, such as float32), its chunks."""

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer of a model that came here without the data that it was trained on."""

    object: str
    """Object name of the tokenizer.json."""
    begin: int | None
    """The token in front of a text, if there is one."""
    ends: tuple[int, ...]
    """The tokens that end a text."""
    chat_template: str | None = None
    """The Jinja2 template of conversations, if there is one."""


@dataclass(frozen=True)
class CheckpointManifest:
    """All that a run needs to go on from `position`."""

    run: str
    position: int
    """Sequences consumed."""
    step: int
    """Optimizer steps made."""
    receipt: str
    """The rolling digest of what was consumed, hexadecimal."""
    ledger: str
    """Object name of the ledger's root."""
    recipe: dict[str, Any]
    datasets: dict[str, str]
    """Source name → object name of its data set's manifest."""
    code: str
    """Object name of the source code that made it (a tar.zst)."""
    optimizer: dict[str, Any]
    """The optimizer's scalars; its tensors stand with the others."""
    tensors: dict[str, TensorEntry]
    tokenizer: TokenizerEntry | None = None
    """That of an imported model; a run has the one of its data sets."""


def write_manifest(depot: Depot, manifest: CheckpointManifest) -> str:
    """Publish the manifest as the newest checkpoint of its run; its object name."""
    document = {"format": "bushcraft-checkpoint", "version": VERSION, **vars(manifest)}
    if manifest.tokenizer is None:
        document["version"] = 1
        del document["tokenizer"]
    # No indents: json writes them ten times slower, in Python, and a large run has a hundred thousand chunks.
    text = json.dumps(document, default=vars, sort_keys=True, separators=(",", ":"))
    name = depot.put_bytes(text.encode())
    depot.publish(f"checkpoints/{manifest.run}", name)
    return name


def read_manifest(depot: Depot, name: str) -> CheckpointManifest:
    """The manifest with that object name. Errors: `CheckpointError`, `StoreError`, `CorruptObjectError`."""
    try:
        document = json.loads(depot.read(name))
        kind, version = document.pop("format"), document.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError):
        kind, version = None, 0
    if kind != "bushcraft-checkpoint":
        raise CheckpointError(f"object {name} is not a checkpoint", "`bushcraft checkpoint list` shows them")
    if version > VERSION:
        raise CheckpointError(
            f"checkpoint {name} has format {version}, this is for {VERSION}", "Install a newer bushcraft"
        )
    tensors = {
        key: TensorEntry(tuple(t["shape"]), t["dtype"], tuple(_chunk(chunk) for chunk in t["chunks"]))
        for key, t in document.pop("tensors").items()
    }
    tokenizer = document.pop("tokenizer", None)
    return CheckpointManifest(tensors=tensors, tokenizer=tokenizer and _tokenizer(tokenizer), **document)


def _tokenizer(document: dict[str, Any]) -> TokenizerEntry:
    return TokenizerEntry(**{**document, "ends": tuple(document["ends"])})


def _chunk(document: dict[str, Any]) -> Chunk:
    return Chunk(**{**document, "offset": tuple(document["offset"]), "shape": tuple(document["shape"])})
