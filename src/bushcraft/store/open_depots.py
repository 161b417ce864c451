"""The depot of a store, as its settings say: one directory, or several depots as one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.reading import RangeSource
from bushcraft.store.settings import DepotSettings, StoreSettings, read_settings

if TYPE_CHECKING:
    from bushcraft.store.buckets.capabilities import Capabilities

PEERS = "BUSHCRAFT_PEERS"
"""Environment: HOST:PORT of the cluster's nodes that serve pieces, parted by commas; their token is BUSHCRAFT_TOKEN."""
OWN = "BUSHCRAFT_PEER"
"""Environment: which of these is this node, if it is one."""


def open_depot(root: Path) -> Depot:
    """The depot of the store at `root`; none of several is asked before it is needed.

    Errors: `StoreError` if the settings are wrong or a depot is of a later version.
    """
    settings = read_settings(root)
    if is_single(settings):
        return LocalDepot.open(root / "depot")
    return Depots([open_member(root, one) for one in settings.depots], settings, root, _sources(root, settings))


def is_single(settings: StoreSettings) -> bool:
    """Whether the store is the directory STORE/depot and nothing else."""
    return settings.depots == StoreSettings().depots


def as_depots(root: Path, depot: Depot) -> Depots:
    """The store's depots, also where there is but one."""
    return depot if isinstance(depot, Depots) else Depots([depot], read_settings(root), root)


def open_member(root: Path, settings: DepotSettings) -> Depot:
    """One depot, which need not answer now. Errors: `StoreError` if it is of a later version."""
    if settings.is_local:
        return _open_directory(root / settings.url, settings.name)
    from bushcraft.store.buckets.bucket import BucketDepot

    return BucketDepot(settings.name, settings.url, root / "incoming", settings.options, _probed(root, settings.name))


def create_member(root: Path, settings: DepotSettings) -> Depot:
    """One depot, made where there is none. Errors: `StoreError`, `UnreachableError`."""
    if settings.is_local:
        return LocalDepot.create(root / settings.url, settings.name)
    from bushcraft.store.buckets.bucket import BucketDepot

    return BucketDepot.create(settings.name, settings.url, root / "incoming", settings.options)


def _probed(root: Path, name: str) -> "Capabilities | None":
    """What `bushcraft store probe` found out about it, if it was asked."""
    from bushcraft.store.buckets.capabilities import Capabilities, ProbeReport

    report = root / "probes" / f"{name}.json"
    return Capabilities.of(ProbeReport.read(report)) if report.exists() else None


def _open_directory(path: Path, name: str) -> Depot:
    """A disk that is not mounted, or a marker that is damaged, is one depot less and no reason to stop."""
    try:
        json.loads((path / "depot.json").read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return LocalDepot(path, name)
    return LocalDepot.open(path, name)


def _sources(root: Path, settings: StoreSettings) -> Sequence[RangeSource]:
    """This node's cache, then the peers."""
    sources: list[RangeSource] = []
    if settings.cache.gib > 0:
        from bushcraft.store.nodes.cache import Cache

        sources.append(Cache(root / settings.cache.directory, int(settings.cache.gib * 2**30)))
    addresses = [address for address in os.environ.get(PEERS, "").split(",") if address]
    if addresses:
        from bushcraft.store.nodes.peers import Peers

        sources.append(Peers(addresses, os.environ.get(OWN) or None))
    return sources
