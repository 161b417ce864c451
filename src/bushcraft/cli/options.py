"""Options that many commands share, and how they print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bushcraft.errors import StoreError
from bushcraft.store.workspace import Store, default_store


def _store_path(text: str) -> Path:
    """An empty --store is a variable that was not set, and not the working directory."""
    if not text:
        raise StoreError("--store is empty", "Name a directory, or leave --store away")
    return Path(text)


StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        parser=_store_path,
        metavar="PATH",
        help="Where the store is; $BUSHCRAFT_STORE or ./store by default.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UNWRAPPED = 500
"""Columns: a terminal may wrap a long name, but it stays one name when it is copied or piped."""


def open_store(path: Path | None) -> Store:
    """The store that the command is about. Errors: `StoreError`."""
    return Store.open(path or default_store())


def print_json(data: Any) -> None:
    """Print `data` as indented JSON."""
    print(json.dumps(data, indent=1, default=str))


def print_table(columns: list[str], rows: list[list[str]], right: tuple[str, ...] = ()) -> None:
    """Print rows under their columns; `right` columns hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=UNWRAPPED).print(table, crop=False)
