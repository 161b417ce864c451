"""Which checkpoint a run goes on from: the newest one whose every byte is what it should be."""

from collections.abc import Callable

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest
from bushcraft.checkpoint.tensors import verify_tensors
from bushcraft.errors import BushcraftError, CheckpointError, StoreError
from bushcraft.store.depot import Depot


def checkpoints(depot: Depot, run: str) -> list[tuple[int, str]]:
    """All checkpoints of a run: (number, object name of the manifest), newest first."""
    return list(depot.history(f"checkpoints/{run}"))


def verify(depot: Depot, name: str) -> tuple[CheckpointManifest, int]:
    """Check all that the manifest names; (manifest, bytes read).

    Errors: `CorruptObjectError` or `StoreError` for the first thing that is damaged or missing.
    """
    manifest = read_manifest(depot, name)
    n_bytes = verify_tensors(depot, manifest.tensors)
    tokenizer = [manifest.tokenizer.object] if manifest.tokenizer else []
    for other in (manifest.ledger, manifest.code, *manifest.datasets.values(), *tokenizer):
        depot.verify(other)
        n_bytes += depot.size(other)
    return manifest, n_bytes


def newest(
    depot: Depot, run: str, unusable: Callable[[str, BushcraftError], None]
) -> tuple[str, CheckpointManifest] | None:
    """The newest verified checkpoint, or None if the run has none; `unusable` hears of each that was passed over.

    Errors: `CheckpointError` if the run has checkpoints and none of them is whole.
    """
    passed = 0
    for _, name in checkpoints(depot, run):
        try:
            return name, verify(depot, name)[0]
        except (StoreError, CheckpointError) as error:
            passed += 1
            unusable(name, error)
    if passed:
        raise CheckpointError(
            f"none of the {passed} checkpoints of run {run!r} is whole",
            "Restore their objects from a copy of the depot, or train anew by --set run.name=NAME",
        )
    return None
