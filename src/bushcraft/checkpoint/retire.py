"""Let go of a run's checkpoints that a policy does not want: their references end, `store gc` may remove the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.checkpoint.newest import checkpoints, verify
from bushcraft.checkpoint.retention import NEWEST_VERIFIED, RetentionPolicy, SavedCheckpoint, kept
from bushcraft.errors import BushcraftError, CheckpointError
from bushcraft.store.care import gc
from bushcraft.store.depots import Depots


@dataclass(frozen=True)
class Retired:
    """What a policy makes of a run."""

    kept: tuple[int, ...]
    """Numbers of checkpoints, the newest first."""
    gone: tuple[int, ...]


def judge(depots: Depots, run: str, policy: RetentionPolicy, losses: Mapping[int, float]) -> Retired:
    """What would be kept, and what would go. The newest ones are read and verified until there are enough.

    `losses`: held-out loss by position. Errors: `CheckpointError` (the run has none), `StoreError`.
    """
    saved: list[SavedCheckpoint] = []
    n_verified = 0
    for number, name in checkpoints(depots, run):
        try:
            wanted = n_verified < NEWEST_VERIFIED
            manifest = verify(depots, name)[0] if wanted else read_manifest(depots, name)
        except BushcraftError:
            saved.append(SavedCheckpoint(number, 0, verified=False))
            continue
        n_verified += wanted
        saved.append(SavedCheckpoint(number, manifest.position, True, losses.get(manifest.position)))
    if not saved:
        raise CheckpointError(f"run {run!r} has no checkpoints", "`bushcraft checkpoint list` shows those there are")
    wanted_numbers = kept(saved, policy)
    numbers = [checkpoint.number for checkpoint in saved]
    return Retired(
        tuple(number for number in numbers if number in wanted_numbers),
        tuple(number for number in numbers if number not in wanted_numbers),
    )


def retire(depots: Depots, run: str, judged: Retired) -> None:
    """End the references of those that go, in all depots. Errors: `StoreError` for each reason to refuse."""
    gc.check_allowed(depots)
    gc.retire(depots, f"checkpoints/{run}", lambda number, _: number in judged.kept)
