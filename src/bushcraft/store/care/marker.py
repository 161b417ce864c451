"""The file depot.json, which makes a directory or a prefix a depot."""

import json
from pathlib import Path

from bushcraft.errors import StoreError, UnreachableError
from bushcraft.store.depot import VERSION, Depot
from bushcraft.store.durable import make_directory, write_atomically
from bushcraft.store.local import LocalDepot
from bushcraft.store.open_depots import create_member
from bushcraft.store.settings import DepotSettings


def mend_marker(root: Path, settings: DepotSettings, depot: Depot) -> bool:
    """Write depot.json anew where it is missing or damaged; whether that was so.

    Errors: `StoreError` if the place has nothing of a depot: a disk that is not mounted is not filled.
    """
    if isinstance(depot, LocalDepot):
        return _mend_directory(depot)
    from bushcraft.store.buckets.bucket import BucketDepot

    try:
        BucketDepot.open(settings.name, settings.url, root / "incoming", settings.options)
    except UnreachableError:
        raise
    except StoreError:
        create_member(root, settings)
        return True
    return False


def _mend_directory(depot: LocalDepot) -> bool:
    marker = depot.root / "depot.json"
    try:
        json.loads(marker.read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        if not any((depot.root / directory).is_dir() for directory in ("objects", "refs")):
            raise StoreError(
                f"{depot.root} is not a depot", "Mount it, or make it anew by `bushcraft store init`"
            ) from None
        for directory in ("objects", "refs", "incoming"):
            make_directory(depot.root / directory)
        write_atomically(marker, json.dumps({"format": "bushcraft-depot", "version": VERSION}).encode())
        return True
    return False
