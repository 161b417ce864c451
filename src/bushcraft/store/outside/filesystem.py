"""The fsspec protocol `bushcraft://`: what reads through fsspec (pandas, pyarrow, datasets, dask) reads a store's tree.

    pandas.read_parquet("bushcraft://folders/NAME/rows.parquet", storage_options={"store": "/data/store"})

Without the option the store is $BUSHCRAFT_STORE, or `store` in the working directory. Nothing can be written.
Source of the interface: fsspec, `fsspec/spec.py`.
"""

import errno
import os
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from bushcraft.store.outside.blocks import BlockCache, File
from bushcraft.store.outside.tree import Directory, Node, find, tree
from bushcraft.store.workspace import Store, default_store

CACHE_BYTES = 128 * 1024 * 1024
"""Of blocks: readers of columns ask for a few bytes here and there."""


class BushcraftFileSystem(AbstractFileSystem):  # type: ignore[misc] # it has no types
    """A store's tree, read-only; every byte is verified.

    Errors: FileNotFoundError and its like as from any file system; `BushcraftError` for what is damaged or unreachable.
    """

    protocol = "bushcraft"

    def __init__(self, store: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._store = None if store is None else Path(store).absolute()
        self._trees: dict[Path, Directory] = {}
        self._cache = BlockCache(CACHE_BYTES)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a directory, or the file itself: names, or with `detail` what `info` says of each."""
        path = self._strip_protocol(path)
        node = self._node(path)
        if isinstance(node, File):
            return [_about(path, node)] if detail else [path]
        paths = [f"{path}/{name}".lstrip("/") for name in node.names()]
        return [self.info(inner) for inner in paths] if detail else paths

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """`name`, `size` in bytes (0 of a directory), `type`; of a file also its `identity`: equal for equal bytes."""
        path = self._strip_protocol(path)
        return _about(path, self._node(path))

    def checksum(self, path: str) -> int:
        """Equal for equal bytes."""
        return int(self._file(path).identity, 16)

    def ukey(self, path: str) -> str:
        """Equal for equal bytes."""
        return self._file(path).identity

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes [start, end) of a file, which count from its end where they are negative."""
        file = self._file(path)
        begin, stop, _step = slice(start, end).indices(file.size)
        return file.read(begin, stop, self._cache)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> "BushcraftFile":
        if mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        file = self._file(path)
        options = {"cache_type": "none"} | options  # blocks are kept already, for all readers
        opened = BushcraftFile(
            self, path, mode, block_size, autocommit, cache_options=cache_options, size=file.size, **options
        )
        opened.read_range = lambda begin, end: file.read(begin, end, self._cache)
        return opened

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: ARG002
        """Refused."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: ARG002
        """Refused."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def _file(self, path: str) -> File:
        node = self._node(self._strip_protocol(path))
        if isinstance(node, Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return node

    def _node(self, path: str) -> Node:
        root = self._store or default_store().absolute()  # the variable may change while this object lives
        if root not in self._trees:
            self._trees[root] = tree(Store.open(root).depot)
        node = find(self._trees[root], path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node


class BushcraftFile(AbstractBufferedFile):  # type: ignore[misc] # it has no types
    """An open file: it keeps its bytes also when its path gets others."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.read_range(start, end)
        return data


def _about(path: str, node: Node) -> dict[str, Any]:
    if isinstance(node, Directory):
        return {"name": path, "size": 0, "type": "directory"}
    return {"name": path, "size": node.size, "type": "file", "identity": node.identity}
