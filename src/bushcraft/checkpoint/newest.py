"""Which checkpoint a run goes on from: the newest one whose every byte is what it should be."""

from collections.abc import Callable

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest
from bushcraft.checkpoint.tensors import verify_tensors
from bushcraft.errors import BushcraftError, CheckpointError, StoreError
from bushcraft.store.depot import Depot


def checkpoints(depot: Depot, run: str) -> list[tuple[int, str]]:
    """All checkpoints of a run: (number, object name of the manifest), newest first."""
    return list(depot.history(f"checkpoints/{run}"))


def verify(depot: Depot, name: str, share: tuple[int, int] = (0, 1)) -> tuple[CheckpointManifest, int]:
    """Check all that the manifest names; (manifest, bytes read).

    With a `share` (rank, world size) each rank reads its part of the tensors, and all together read all.
    Errors: `CorruptObjectError` or `StoreError` for the first thing that is damaged or missing.
    """
    manifest = read_manifest(depot, name)
    n_bytes = verify_tensors(depot, manifest.tensors, share=share)
    tokenizer = [manifest.tokenizer.object] if manifest.tokenizer else []
    for other in (manifest.ledger, manifest.code, *manifest.datasets.values(), *tokenizer):
        depot.verify(other)
        n_bytes += depot.size(other)
    return manifest, n_bytes


def _verified(depot: Depot, name: str) -> CheckpointManifest:
    return verify(depot, name)[0]


def newest(
    depot: Depot,
    run: str,
    unusable: Callable[[str, BushcraftError], None],
    verified: Callable[[Depot, str], CheckpointManifest] = _verified,
) -> tuple[str, CheckpointManifest] | None:
    """The newest verified checkpoint, or None if the run has none.

    `unusable` hears of each that was passed over: why, and which older one serves. `verified` checks a checkpoint and
    reads its manifest: ranks that share the work bring one on whose outcome they agree.
    Errors: `CheckpointError` if the run has checkpoints and none of them is whole.
    """
    passed: list[tuple[str, BushcraftError]] = []
    found = None
    for _, name in checkpoints(depot, run):
        try:
            found = name, verified(depot, name)
            break
        except (StoreError, CheckpointError) as error:
            passed.append((name, error))
    serves = f"the checkpoint of position {found[1].position} is whole" if found else "no older one is whole"
    for name, why in passed:
        unusable(name, type(why)(f"{why.message}; {serves}", why.next_step))
    if passed and not found:
        raise CheckpointError(
            f"none of the {len(passed)} checkpoints of run {run!r} is whole",
            "Restore their objects from a copy of the depot, or train anew by --set run.name=NAME",
        )
    return found
