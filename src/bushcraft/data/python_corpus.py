"""A corpus that every machine with Python has: the text of this Python installation itself.

The standard library and the installed packages: code and documentation written by people. What a program
wrote (tables, generated or minified code) is passed over. Which files are taken depends on their content
alone; no network is needed.
"""

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from bushcraft.data.sources import Source
from bushcraft.errors import DataError

ENDINGS = (".py", ".txt", ".md", ".rst")
LARGEST_CORPUS = 64 << 20
LARGEST_FILE = 256 << 10
LONGEST_LINE = 1000
OWN_PACKAGES = ("bushcraft",)
"""Left out, so that working on this package does not change the corpus that it is tested with."""
_GENERATED = re.compile(
    rb"@generated|do not (edit|modify)|auto-?generated|generated (by|from|file|code)", re.IGNORECASE
)
_WORD_CHARACTERS = bytes(c for c in range(256) if chr(c) not in "0123456789,.\\+-xuU()[]{}'\": \t\r\n")


def python_sources(largest_corpus: int = LARGEST_CORPUS) -> list[Source]:
    """Files of this installation up to `largest_corpus` bytes in all, in the order of their names.

    Exact copies count once; beyond the limit the files with the smallest content hashes are taken.
    Errors: `DataError` if the installation has no text.
    """
    chosen: dict[bytes, Source] = {}
    for name, path in _files():
        try:
            size = Path(path).stat().st_size
            if not 0 < size <= LARGEST_FILE:
                continue
            text = Path(path).read_bytes()
            modified_ns = Path(path).stat().st_mtime_ns
        except OSError:
            continue
        if is_written_by_people(text):
            chosen.setdefault(blake3(text).digest(), Source(path, name, "text", "", len(text), modified_ns))
    taken, n_bytes = [], 0
    for _, source in sorted(chosen.items()):
        if n_bytes + source.size > largest_corpus:
            break
        taken.append(source)
        n_bytes += source.size
    if not taken:
        raise DataError("this Python installation has no source text", "Name files or folders instead of --python")
    return sorted(taken, key=lambda source: source.name)


def is_written_by_people(text: bytes) -> bool:
    """Whether a file is UTF-8 and looks neither generated, nor minified, nor like a table of numbers."""
    if b"\0" in text or _GENERATED.search(text[:1500]):
        return False
    if max(map(len, text.split(b"\n"))) > LONGEST_LINE:
        return False
    digits_and_brackets = len(text.translate(None, _WORD_CHARACTERS))
    blanks = sum(map(text.count, (b" ", b"\t", b"\r", b"\n")))
    if digits_and_brackets - blanks > 0.5 * (len(text) - blanks):
        return False
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def installation() -> str:
    """Which Python this is, for the notes of the data set."""
    return f"{sysconfig.get_platform()} Python {sysconfig.get_python_version()}"


def _files() -> Iterator[tuple[str, str]]:
    """(name, path) of the files with a known ending, in the order of their names."""
    paths = sysconfig.get_paths()
    roots = {"stdlib": paths["stdlib"], "site-packages": paths["purelib"]}
    if paths["platlib"] != paths["purelib"]:
        roots["platform-packages"] = paths["platlib"]
    for label, root in roots.items():
        for directory, subdirectories, files in os.walk(root):
            inside = Path(directory).relative_to(root)
            subdirectories[:] = sorted(
                name
                for name in subdirectories
                if name not in ("__pycache__", "site-packages", "dist-packages")
                and not name.startswith(".")
                and not (inside == Path() and name in OWN_PACKAGES)
            )
            for file in sorted(files):
                if file.endswith(ENDINGS):
                    yield f"{label}/{(inside / file).as_posix()}", str(Path(directory, file))
