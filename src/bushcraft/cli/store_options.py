"""What the commands of `bushcraft store` share: which store, how sizes read, and how long work shows."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bushcraft.cli.options import open_store
from bushcraft.errors import StoreError
from bushcraft.store.depots import Depots
from bushcraft.store.open_depots import as_depots

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
ROOMS = ("ledger", "data", "checkpoint")
"""Whose documents refer to objects."""


def open_depots(store: Path | None) -> tuple[Path, Depots]:
    """The store's root, and its depots. Errors: `StoreError`."""
    where = open_store(store)
    return where.root, as_depots(where.root, where.depot)


def know_links() -> None:
    """Let every room say what its documents refer to."""
    for room in ROOMS:
        importlib.import_module(f"bushcraft.{room}.links")


def size(n_bytes: float) -> str:
    """As 3.2 GiB."""
    for unit in _UNITS:
        if n_bytes < 1024 or unit == _UNITS[-1]:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError


def counted(n: int, what: str) -> str:
    """As 1 object, 2,000 objects."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """As 40 s, 12 min, 5 h, 3 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def pairs(given: list[str], option: str, separator: str = "=") -> dict[str, str]:
    """NAME=VALUE as a mapping. Errors: `StoreError`."""
    found = {}
    for text in given:
        name, found_one, value = text.partition(separator)
        if not (found_one and name and value):
            raise StoreError(
                f"{option} {text!r} is not NAME{separator}VALUE", f"Write it so: {option} NAME{separator}VALUE"
            )
        found[name] = value
    return found


@contextmanager
def bar(what: str) -> Iterator[Callable[[float | None, str], None]]:
    """A bar on stderr, if that is a terminal; it is told the share that is done (or None), and a few words."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def tell(share: float | None, words: str) -> None:
            total, completed = (None, 0.0) if share is None else (1.0, share)
            progress.update(task, total=total, completed=completed, description=f"{what}: {words}")

        yield tell
