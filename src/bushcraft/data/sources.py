"""Which files an import reads: folders, globs and file names → a sorted list of sources.

A source's name (folder name and path inside it) goes into the packs; where the folder lies does not.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from bushcraft.errors import DataError

Kind = Literal["text", "jsonl", "parquet"]
Compression = Literal["", "gz", "zst"]
OnBad = Callable[[DataError], None]
"""What to do about an input that cannot be read: raise it, or take a note of it and return."""

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
SUPPORTED = ".txt .md .rst .py .jsonl (also .gz and .zst of these) .parquet"


@dataclass(frozen=True)
class Source:
    """One input file as it was found."""

    path: str
    name: str
    kind: Kind
    compression: Compression
    size: int
    modified_ns: int


def stop_on_bad(error: DataError) -> NoReturn:
    """The default answer to a bad input."""
    raise error


def find_sources(patterns: Sequence[str], on_bad: OnBad = stop_on_bad) -> list[Source]:
    """The readable files behind folders, globs and file names, sorted by name, each once.

    Hidden files and folders below a given folder are passed over. Errors: `DataError` where a pattern finds
    nothing, a named file is of no known kind, or a folder or file cannot be read.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        for path, name in _expand(pattern, on_bad):
            source = _source(path, name, on_bad)
            if source is not None:
                found.setdefault(os.path.realpath(path), source)
    return sorted(found.values(), key=lambda source: (source.name, source.path))


def kind_of(path: str) -> tuple[Kind, Compression] | None:
    """What the file name says about its content; None if it says nothing that can be read."""
    suffixes = Path(path.lower()).suffixes
    suffix = suffixes.pop() if suffixes else ""
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = suffixes.pop() if suffixes else ""
    kind = _KINDS.get(suffix)
    if kind is None or (kind == "parquet" and compression):
        return None
    return kind, compression


def _expand(pattern: str, on_bad: OnBad) -> Iterator[tuple[str, str]]:
    """(path, name) of the files behind one pattern."""
    path = Path(pattern).expanduser()
    if os.path.lexists(path):
        matches = [str(path)]
    elif glob.has_magic(pattern):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise DataError(f"no file matches {pattern}", "Quote the pattern, and use ** to go down into folders")
        # A glob takes what it matches of the known kinds: `corpus/*` may match a licence or an image as well.
        matches = [match for match in matches if Path(match).is_dir() or kind_of(match)]
    else:
        raise DataError(f"{pattern} does not exist", "Name a folder, a file or a quoted glob")
    n_files, passed_over = 0, Counter[str]()
    for match in matches:
        if not Path(match).is_dir():
            n_files += 1
            yield match, Path(match).name
            continue
        top = Path(match).resolve().name
        for file in _walk(match, on_bad):
            if kind_of(file):
                n_files += 1
                yield file, f"{top}/{Path(file).relative_to(match).as_posix()}"
            else:
                passed_over[Path(file).suffix or "no suffix"] += 1
    if not n_files:
        others = ", ".join(f"{n} {suffix}" for suffix, n in passed_over.most_common(5))
        on_bad(
            DataError(
                f"{pattern} holds none of {SUPPORTED}" + (f" (only {others})" if others else ""),
                "Name a folder with text, or convert the files to one of these",
            )
        )


def _walk(folder: str, on_bad: OnBad) -> Iterator[str]:
    """All files below `folder` in a fixed order, without hidden ones."""

    def refuse(error: OSError) -> None:
        on_bad(
            DataError(
                f"cannot read folder {error.filename}: {error.strerror}",
                "Give this user read access, or leave it out by --on-bad skip",
            )
        )

    for directory, subdirectories, files in os.walk(folder, onerror=refuse):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                yield str(Path(directory, file))


def _source(path: str, name: str, on_bad: OnBad) -> Source | None:
    kind = kind_of(path)
    if kind is None:
        on_bad(DataError(f"{path} is of no known kind", f"Give it one of the endings {SUPPORTED}"))
        return None
    try:
        stat = Path(path).stat()
        readable = os.access(path, os.R_OK)
    except OSError as error:
        on_bad(DataError(f"cannot read {path}: {error.strerror}", "Restore the file, or use --on-bad skip"))
        return None
    if not readable:
        on_bad(DataError(f"cannot read {path}: permission denied", "Give this user read access"))
        return None
    if not Path(path).is_file():
        on_bad(DataError(f"{path} is not a regular file", "Name a file or a folder"))
        return None
    return Source(path, name, *kind, size=stat.st_size, modified_ns=stat.st_mtime_ns)
