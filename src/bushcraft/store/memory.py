"""A run's depot in this machine's memory: read first, it counts for nothing, and it is gone with the machine.

Processes that are restarted find there what was written last, also where the disk or the network fail.

    /dev/shm/bushcraft-UID/STORE/store       the store's path
    /dev/shm/bushcraft-UID/STORE/RUN/        the depot, and beside its folders `slots` with the copies themselves

Where /dev/shm is small, as in a container, $BUSHCRAFT_MEMORY names another memory file system.
"""

import os
import shutil
from pathlib import Path

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot, object_name
from bushcraft.store.depots import Depots
from bushcraft.store.durable import machine_errors
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, StoreSettings

MEMORY_VARIABLE = "BUSHCRAFT_MEMORY"


def shared_memory() -> Path:
    """The memory file system of this node."""
    return Path(os.environ.get(MEMORY_VARIABLE) or "/dev/shm")


def memory_root(store: Path, run: str) -> Path:
    """Where the memory depot of a run lies, whether or not it is there."""
    return _home() / object_name(str(store.resolve()).encode())[:16] / run


def open_memory(store: Path, run: str) -> LocalDepot | None:
    """The memory depot of a run; None if there is none, or it cannot be used."""
    root = memory_root(store, run)
    try:
        return LocalDepot.open(root, "memory") if _is_ours() and root.is_dir() else None
    except (StoreError, OSError):
        return None


def create_memory(store: Path, run: str) -> LocalDepot | None:
    """The memory depot of a run, made if there is none, for this user alone; None if it cannot be made."""
    root = memory_root(store, run)
    if not make_home():
        return None
    try:
        _remove_those_of_lost_stores()
        root.parent.mkdir(exist_ok=True)
        (root.parent / "store").write_text(str(store.resolve()))
        return LocalDepot.create(root, "memory")
    except (StoreError, OSError):
        return None


def make_home() -> bool:
    """Make the folder of this user, which others cannot read; whether it can be used."""
    try:
        _home().mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return _is_ours() and os.access(_home(), os.W_OK)


def remove_memory(store: Path, run: str) -> None:
    """Give the memory back: all of it is durable, or is no longer wanted."""
    shutil.rmtree(memory_root(store, run), ignore_errors=True)


def read_first(memory: LocalDepot | None, depot: Depot, root: Path) -> Depot:
    """The store's depot with a memory depot in front of it, if there is one; `root` is the store's."""
    if memory is None:
        return depot
    if isinstance(depot, Depots):
        return Depots(depot.members, depot.settings, root, depot.sources, (memory,))
    return Depots([depot], settings_of(depot), root, (), (memory,))


def settings_of(depot: Depot) -> StoreSettings:
    """Those of a set of depots, or of one that is the whole store."""
    if isinstance(depot, Depots):
        return depot.settings
    return StoreSettings(depots=(DepotSettings(name=depot.name, url=str(depot)),))


def add_newest(memory: LocalDepot, ref: str, number: int, name: str) -> None:
    """Publish under a number that counts with the store's. Those of as high a number are older: no store took them.

    Errors: `StoreError`.
    """
    memory.add_ref(ref, number, name)
    for other in memory.ref_values(ref):
        if other[0] >= number and other != (number, name):
            memory.remove_ref(ref, *other)


def keep_only(memory: LocalDepot, names: set[str]) -> None:
    """Remove all other objects. Errors: `StoreError`."""
    for name, _ in list(memory.objects()):
        if name not in names:
            memory.remove_object(name)


def remove_copies(memory: LocalDepot, keep: set[str]) -> None:
    """Remove all other objects but those that ranks have linked from their slots. Errors: `StoreError`."""
    for name, _ in list(memory.objects()):
        path = memory.path(name)
        with machine_errors("read", path):
            is_linked = path.exists() and path.stat().st_nlink > 1
        if name not in keep and not is_linked:
            memory.remove_object(name)


def _home() -> Path:
    return shared_memory() / f"bushcraft-{os.getuid()}"


def _is_ours() -> bool:
    """Whether no other user has made the folder before us."""
    return _home().is_dir() and not _home().is_symlink() and _home().stat().st_uid == os.getuid()


def _remove_those_of_lost_stores() -> None:
    for of_store in _home().iterdir():
        try:
            is_lost = not Path((of_store / "store").read_text()).is_dir()
        except OSError:
            continue  # another process makes it just now
        if is_lost:
            shutil.rmtree(of_store, ignore_errors=True)
