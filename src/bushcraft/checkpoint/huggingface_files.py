"""The files of a Hugging Face folder: read as JSON, written all or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bushcraft.errors import CheckpointError
from bushcraft.store.durable import fsync_directory, make_directory


def read_file(path: Path) -> bytes:
    """Errors: `CheckpointError` if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "Name a folder that save_pretrained of `transformers` has written"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "Give this user access to it") from None


def json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Errors: as `read_file`, and `CheckpointError` if it holds none."""
    try:
        document = json.loads(read_file(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", "Copy the folder again") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object", "Copy the folder again")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Errors: OSError."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to be filled, which is `target` when the block ends well, and gone when it does not.

    Errors: `CheckpointError` if there is something at `target`, or the machine refuses to write.
    """
    target = target.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file", "Name a folder that is new or empty")
        if target.exists() and any(target.iterdir()):
            raise CheckpointError(f"{target} is not empty", "Name a folder that is new or empty")
        make_directory(target.parent)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            _fsync(path)
        fsync_directory(temporary)
        temporary.rename(target)
        fsync_directory(target.parent)
    except OSError as error:
        where = error.filename or temporary
        raise CheckpointError(
            f"cannot write {where}: {error.strerror}", "Nothing was left there. Free some space, or name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
