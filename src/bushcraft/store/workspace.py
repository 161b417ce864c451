"""A store as one machine sees it: its depots as one, and beside them the work in progress that is not sealed yet.

STORE/store.toml   its depots and their policy (`store/settings.py`); without one it has the one below
STORE/depot/       objects and references (`store/depot.py`)
STORE/runs/NAME/   the live ledger of a run
STORE/builds/ID/   the journal of a data build
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.durable import machine_errors, make_directory
from bushcraft.store.local import LocalDepot
from bushcraft.store.open_depots import is_single, open_depot
from bushcraft.store.settings import FILE, read_settings

DEFAULT_STORE = "store"


@dataclass(frozen=True)
class Store:
    """A directory with a depot or several as one; `runs` and `builds` hold what is in progress."""

    root: Path
    depot: Depot

    @classmethod
    def create(cls, root: Path) -> "Store":
        """The store at `root`, made if there is none. Errors: `StoreError`."""
        root = root.absolute()
        with machine_errors("create", root):
            for directory in ("runs", "builds"):
                make_directory(root / directory)
        if is_single(read_settings(root)):
            LocalDepot.create(root / "depot")
        return cls(root, open_depot(root))

    @classmethod
    def open(cls, root: Path) -> "Store":
        """The store at `root`. Errors: `StoreError` if there is none."""
        root = root.absolute()
        with machine_errors("open", root):
            if not (root / "depot").is_dir() and not (root / FILE).exists():
                raise StoreError(
                    f"there is no store at {root}", "Make one by `bushcraft data build`, or name it by --store"
                )
        return cls(root, open_depot(root))

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def builds(self) -> Path:
        return self.root / "builds"


def default_store() -> Path:
    """$BUSHCRAFT_STORE, or `store` in the working directory."""
    return Path(os.environ.get("BUSHCRAFT_STORE") or DEFAULT_STORE)
