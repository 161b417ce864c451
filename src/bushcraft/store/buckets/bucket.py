"""A depot in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure; through obstore.

Objects are hashed here and then put under their name, so that nothing depends on a rename or on the server's
checksums. What lies there afterwards is asked for: its size, and for what went in one request its MD5, where the
server gives one.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from bushcraft.errors import StoreError
from bushcraft.store.buckets.capabilities import Capabilities
from bushcraft.store.buckets.clients import PART_BYTES
from bushcraft.store.buckets.endpoint import make_endpoint
from bushcraft.store.buckets.failures import Failed, Kind
from bushcraft.store.depot import REF_VALUE, VERSION, Depot, object_name, object_path, ref_path
from bushcraft.store.durable import machine_errors, make_directory
from bushcraft.store.incoming import IncomingFile, remove_abandoned

ORDERED = ("s3", "gs", "az")
"""Their listings come in the order of the keys."""
PUTS = 2
"""Attempts to store an object whose bytes arrived wrong."""

_NEXT_STEP = {
    Kind.NO_BUCKET: "Create the bucket at the provider, or correct the URL",
    Kind.DENIED: "Give the credentials in the environment these rights (get, put, list), or renew them",
    Kind.REFUSED: "Look at the depot's options",
}


class BucketDepot(Depot):
    """A prefix of a bucket. Thread-safe; may be handed to a process that is started by spawn."""

    def __init__(
        self,
        name: str,
        url: str,
        staging: Path,
        options: Mapping[str, object] | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        """`staging` is a local directory for files on their way. Options: `clients.BucketOptions`.

        Errors: `StoreError` for a URL or an option that cannot be.
        """
        self.name = name
        self.staging = staging
        self.capabilities = capabilities or Capabilities()
        self._arguments = (name, url, staging, options, capabilities)
        self.endpoint = make_endpoint(url, options or {}, self.capabilities.range)
        self._md5_etags = True
        self._newest_written: dict[str, tuple[int, str]] = {}

    def __str__(self) -> str:
        return str(self.endpoint)

    def __repr__(self) -> str:
        return f"BucketDepot({self.name!r}, {str(self)!r})"

    def __reduce__(self) -> tuple[type["BucketDepot"], tuple[object, ...]]:
        return type(self), self._arguments

    @classmethod
    def create(
        cls,
        name: str,
        url: str,
        staging: Path,
        options: Mapping[str, object] | None = None,
        capabilities: Capabilities | None = None,
    ) -> "BucketDepot":
        """Make the prefix a depot (or open it if it is one). Errors: `StoreError`."""
        depot = cls(name, url, staging, options, capabilities)
        if depot._marker() is None:
            with depot.refusals("depot.json"):
                depot.endpoint.put("depot.json", json.dumps({"format": "bushcraft-depot", "version": VERSION}).encode())
        depot._check_marker()
        return depot

    @classmethod
    def open(
        cls,
        name: str,
        url: str,
        staging: Path,
        options: Mapping[str, object] | None = None,
        capabilities: Capabilities | None = None,
    ) -> "BucketDepot":
        """The depot at `url`. Errors: `StoreError` if it is none, or is of a later version."""
        depot = cls(name, url, staging, options, capabilities)
        depot._check_marker()
        return depot

    def _marker(self) -> bytes | None:
        with self.refusals("depot.json"):
            try:
                return self.endpoint.get("depot.json")
            except Failed as failed:
                if failed.kind is Kind.MISSING:
                    return None
                raise

    def _check_marker(self) -> None:
        marker = self._marker()
        if marker is None:
            raise StoreError(f"{self} is not a depot", "Create one by `bushcraft store init`")
        try:
            version = int(json.loads(marker)["version"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"depot.json of {self} is damaged", "Restore it from a copy of the depot") from None
        if version > VERSION:
            raise StoreError(f"{self} has depot format {version}, this is for {VERSION}", "Install a newer bushcraft")

    # Objects

    def has(self, name: str) -> bool:
        return self._size(name) is not None

    def size(self, name: str) -> int:
        with self.refusals(name):
            return self.endpoint.head(object_path(name))

    def _size(self, name: str) -> int | None:
        with self.refusals(name):
            try:
                return self.endpoint.head(object_path(name))
            except Failed as failed:
                if failed.kind is Kind.MISSING:
                    return None
                raise

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        if begin == end:
            self.size(name)  # it must be there
            return b""
        key = object_path(name)
        with self.refusals(name):
            try:
                data = self.endpoint.get_range(key, begin, end)
                if len(data) != end - begin and self.endpoint.head(key) >= end:
                    data = self.endpoint.get_range(key, begin, end)  # the answer was cut, not the object
            except Failed as failed:
                if failed.kind is not Kind.BEYOND:
                    raise
                raise self.short(name, self.endpoint.head(key), end) from None
        if len(data) != end - begin:
            raise self.short(name, begin + len(data) if data else self.size(name), end)
        return data

    def fetch_all(self, name: str) -> bytes:
        with self.refusals(name):
            return self.endpoint.get(object_path(name))

    def verify(self, name: str) -> None:
        if self.endpoint.ranges:
            super().verify(name)
            return
        with self.refusals(name):
            if self.endpoint.digest(object_path(name)) != name:
                raise self.corrupt(name)

    def holds(self, name: str, size: int) -> bool:
        """By its size: whether its bytes are right only reading it would tell."""
        return self._size(name) == size

    def store_bytes(self, name: str, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self.refusals(name):
            if len(view) > PART_BYTES and self.capabilities.multipart:
                self._store(name, view, len(view))
            else:
                self._store_at_once(name, view)

    def store_file(self, name: str, path: Path) -> None:
        with machine_errors("read", path):
            size = path.stat().st_size
            if size <= PART_BYTES or not self.capabilities.multipart:
                self.store_bytes(name, path.read_bytes())
                return
        with self.refusals(name):
            self._store(name, path, size)

    def _store_at_once(self, name: str, data: memoryview) -> None:
        key = object_path(name)
        for _ in range(PUTS):
            etag = self.endpoint.put(key, data)
            if self._arrived(name, data, etag):
                return
        raise self._not_kept(name, "bytes that are not those that were sent")

    def _arrived(self, name: str, data: memoryview, etag: str | None) -> bool:
        """Whether what lies there is what was sent: by its MD5 if the ETag is that, else by its size."""
        md5 = (etag or "").strip('"').lower()
        if self._md5_etags and len(md5) == 32:
            if md5 == hashlib.md5(data, usedforsecurity=False).hexdigest():
                return True
            # Under server-side encryption, an ETag looks like an MD5 and is none: the bytes themselves tell.
            if object_name(self.endpoint.get(object_path(name))) != name:
                return False
            self._md5_etags = False
        return self._size(name) == len(data)

    def _store(self, name: str, source: Path | memoryview, size: int) -> None:
        for _ in range(PUTS):
            self.endpoint.put_parts(object_path(name), source, size)
            if (found := self._size(name)) == size:
                return
        raise self._not_kept(name, "nothing" if found is None else f"{found} bytes instead of {size}")

    def _not_kept(self, name: str, what: str) -> StoreError:
        return StoreError(
            f"depot {self} took object {name}, but what lies there is {what}", "Ask the provider; use another depot"
        )

    def new_file(self) -> IncomingFile:
        with machine_errors("write", self.staging):
            make_directory(self.staging)
            return IncomingFile(self.staging)

    def remove_abandoned_files(self) -> None:
        with machine_errors("write", self.staging):
            remove_abandoned(self.staging)

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        folder = f"objects/{prefix[:2]}" if len(prefix) >= 2 else "objects"
        after = f"objects/{prefix[:2]}/{prefix[2:63]}" if len(prefix) > 2 else f"objects/{prefix}" if prefix else ""
        found = self._listed(folder, after)
        for key, size in found if self.endpoint.place.scheme in ORDERED else sorted(found):
            name = key.removeprefix("objects/").replace("/", "")
            if name.startswith(prefix) and len(name) == 64:
                yield name, size
            elif name > prefix and not name.startswith(prefix):
                return

    def _listed(self, folder: str, after: str = "") -> Iterator[tuple[str, int]]:
        with self.refusals(folder):
            for page in self.endpoint.pages(folder, after):
                yield from page

    def remove_object(self, name: str) -> None:
        self._remove(object_path(name))

    def _remove(self, key: str) -> None:
        with self.refusals(key):
            try:
                self.endpoint.delete(key)
            except Failed as failed:
                if failed.kind is not Kind.MISSING:
                    raise

    # References

    def add_ref(self, ref: str, number: int, name: str) -> None:
        with self.refusals(ref):
            try:
                self.endpoint.put(_ref_key(ref, number, name), b"", create=self.capabilities.conditional_put)
            except Failed as failed:
                if failed.kind is not Kind.EXISTS:
                    raise
        self._newest_written[ref] = max(self._newest_written.get(ref, (0, "")), (number, name))

    def ref_values(self, ref: str) -> list[tuple[int, str]]:
        folder = ref_path(ref)
        keys = [key.removeprefix(folder + "/") for key, _ in self._listed(folder)]
        values = [(int(value[1]), value[2]) for value in map(REF_VALUE.fullmatch, keys) if value]
        written = self._newest_written.get(ref)
        if written and written not in values and self._is_there(_ref_key(ref, *written)):
            values.append(written)  # the listing is stale
        return values

    def _is_there(self, key: str) -> bool:
        with self.refusals(key):
            try:
                return self.endpoint.head(key) == 0
            except Failed as failed:
                if failed.kind is Kind.MISSING:
                    return False
                raise

    def refs(self, prefix: str = "") -> list[str]:
        folders = set()
        for key, _ in self._listed(ref_path(prefix) if prefix else "refs"):
            folder, _, value = key.removeprefix("refs/").rpartition("/")
            if REF_VALUE.fullmatch(value):
                folders.add(folder)
        return sorted(folders)

    def remove_ref(self, ref: str, number: int, name: str) -> None:
        self._remove(_ref_key(ref, number, name))

    # How its errors read

    @contextlib.contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """Turn a failure about an object's name or a key into the store's errors."""
        try:
            yield
        except Failed as failed:
            if failed.kind is Kind.MISSING:
                raise self.missing(what) from None
            raise StoreError(
                f"depot {self} refuses {what}: {failed.why}", _NEXT_STEP.get(failed.kind, "Try another depot")
            ) from None


def _ref_key(ref: str, number: int, name: str) -> str:
    return f"{ref_path(ref)}/{number:08d}-{name}"
