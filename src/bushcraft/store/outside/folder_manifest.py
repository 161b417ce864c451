"""The manifest of a published folder: which objects its files are.

    {"format": "bushcraft-folder", "version": 1,
     "files": [{"path", "size", "object", "mode", "chunks": [xxh3-128 of each 4 MiB]}],
     "directories": [paths of those in which nothing is]}

Paths are relative and parted by '/'; a mode is 0o644 or 0o755. The same files give the same manifest. The newest
value of the reference `folders/NAME` is the folder as it is now.
"""

import json
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bushcraft.errors import StoreError
from bushcraft.store.depot import OBJECT_NAME, Depot
from bushcraft.store.outside.blocks import BLOCK_BYTES

VERSION = 1
_BEGINNING = b'{"format":"bushcraft-folder"'


class FolderFile(BaseModel):
    """One file. A manifest may come from anybody: a path that could lead out of the folder is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    size: int = Field(ge=0)
    object: str = Field(pattern=f"^{OBJECT_NAME.pattern}$")
    mode: Literal[0o644, 0o755]
    chunks: tuple[str, ...]
    """xxh3-128 of each `BLOCK_BYTES`, hexadecimal."""

    @field_validator("path")
    @classmethod
    def _path_is_inside(cls, path: str) -> str:
        return _inside(path)

    @model_validator(mode="after")
    def _all_bytes_have_a_checksum(self) -> "FolderFile":
        if len(self.chunks) != -(-self.size // BLOCK_BYTES):
            raise ValueError(f"{self.path} has {len(self.chunks)} checksums for {self.size} bytes")
        return self


class FolderManifest(BaseModel):
    """What a folder holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    files: tuple[FolderFile, ...]
    directories: tuple[str, ...] = ()
    """Only those in which nothing is: the others follow from the files."""

    @field_validator("directories")
    @classmethod
    def _paths_are_inside(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_inside, paths))

    @model_validator(mode="after")
    def _no_path_is_two_things(self) -> "FolderManifest":
        ends = [file.path for file in self.files] + list(self.directories)
        inner = {str(parent) for path in ends for parent in PurePosixPath(path).parents}
        if len(set(ends)) < len(ends) or not inner.isdisjoint(ends):
            raise ValueError("a path stands in it twice")
        return self

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def _inside(path: str) -> str:
    if "\0" in path or not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is not a path inside of the folder")
    return path


def write_folder(depot: Depot, manifest: FolderManifest) -> str:
    """Store the manifest durably; its object name."""
    document = {"format": "bushcraft-folder", "version": VERSION, **manifest.model_dump()}
    return depot.put_bytes(json.dumps(document, separators=(",", ":")).encode())


def is_folder(depot: Depot, name: str) -> bool:
    """Whether an object looks like the manifest of a folder. Errors: `MissingObjectError`, `StoreError`."""
    return depot.size(name) > len(_BEGINNING) and depot.fetch(name, 0, len(_BEGINNING)) == _BEGINNING


def read_folder(depot: Depot, name: str) -> FolderManifest:
    """The manifest of that object name, which must not lead out of the folder. Errors: `StoreError` and its kinds."""
    data = depot.read(name)
    if not data.startswith(_BEGINNING):
        raise StoreError(f"object {name} is not a folder", "`bushcraft store ls folders` shows them")
    document = json.loads(data)
    if document["version"] > VERSION:
        raise StoreError(
            f"folder {name} has format {document['version']}, this is for {VERSION}", "Install a newer bushcraft"
        )
    try:
        return FolderManifest.model_validate(document)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise StoreError(f"folder {name} cannot be used: {why}", "Publish it again by `bushcraft store put`") from None


def find_folder(depot: Depot, name_or_manifest: str) -> tuple[str, FolderManifest]:
    """The newest folder of that name, or the one whose manifest is that object: (object name, manifest).

    Errors: `StoreError` that lists the known names if there is none.
    """
    if OBJECT_NAME.fullmatch(name_or_manifest):
        return name_or_manifest, read_folder(depot, name_or_manifest)
    name = depot.latest(f"folders/{name_or_manifest}")
    if name is None:
        known = ", ".join(ref.removeprefix("folders/") for ref in depot.refs("folders")) or "none"
        raise StoreError(
            f"there is no folder {name_or_manifest!r} in {depot} (known: {known})",
            f"Publish it by `bushcraft store put DIR {name_or_manifest}`",
        )
    return name, read_folder(depot, name)
