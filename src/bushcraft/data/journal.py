"""The directory of a build in progress: what is done stays done, also after kill -9.

Each finished task is one small JSON record, written atomically after everything that it tells of is durable.
The directory is named by the BLAKE3 of the inputs and settings, so that the same command finds it again.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from bushcraft.errors import StoreError
from bushcraft.store.durable import machine_errors, make_directory, publish_file, write_atomically

RESULT = "result"


def identity(settings: dict[str, Any], inputs: Iterable[Any]) -> str:
    """The name of a build: a hash over its settings and inputs (values that JSON can hold)."""
    hasher = blake3(json.dumps(settings, sort_keys=True).encode())
    for value in inputs:
        hasher.update(b"\n" + json.dumps(value).encode())
    return hasher.hexdigest()[:32]


@dataclass(frozen=True)
class Journal:
    """Records (JSON) and files of one build, by keys such as `scan/00007`."""

    directory: Path

    def lock(self) -> IO[bytes]:
        """Make this process the only one that builds here, for as long as it lives and keeps what this returns.

        Errors: `StoreError` if another process does.
        """
        with machine_errors("write", self.directory):
            make_directory(self.directory)
            file = (self.directory / "lock").open("wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise StoreError(
                    f"another process is at this very build ({self.directory})", "Wait for it, or stop it first"
                ) from None
        return file

    def read(self, key: str) -> dict[str, Any] | None:
        """The record `key`, None if that is not done yet. One that cannot be understood counts as not done."""
        path = self.directory / f"{key}.json"
        with machine_errors("read", path):
            try:
                record = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                return None
        return record if isinstance(record, dict) else None

    def write(self, key: str, record: dict[str, Any]) -> None:
        """Errors: `StoreError`."""
        write_atomically(self.directory / f"{key}.json", json.dumps(record, indent=1).encode())

    def file(self, key: str) -> Path:
        """Where the finished file `key` lies."""
        return self.directory / key

    @contextlib.contextmanager
    def new_file(self, key: str) -> Iterator[IO[bytes]]:
        """A file to write; it gets its name at the end, when its bytes are durable. Errors: `StoreError`."""
        target = self.file(key)
        temporary = target.with_name(f".{target.name}.tmp")
        with machine_errors("write", target):
            make_directory(target.parent)
            with temporary.open("wb") as file:
                yield file
            publish_file(temporary, target)

    def clear(self, results: bool = False) -> None:
        """Remove the work in progress; with `results` also what finished builds came to."""
        with machine_errors("write", self.directory):
            for path in self.directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock" and (results or not path.name.startswith(RESULT)):
                    path.unlink()
