"""How a checkpoint is named: RUN (its newest), RUN@NUMBER, or the object name of its manifest."""

from bushcraft.errors import CheckpointError
from bushcraft.store.depot import OBJECT_NAME, Depot


def manifest_named(depot: Depot, text: str) -> str:
    """The object name of that checkpoint's manifest, which is not read. Errors: `CheckpointError`, `StoreError`."""
    if OBJECT_NAME.fullmatch(text):
        return text
    run, at, number = text.partition("@")
    history = depot.history(f"checkpoints/{run}")
    if not history:
        known = ", ".join(ref.removeprefix("checkpoints/") for ref in depot.refs("checkpoints")) or "none"
        raise CheckpointError(f"run {run!r} has no checkpoints", f"Runs that have: {known}")
    for found, name in history:
        if not at or str(found) == number:
            return name
    numbers = f"{history[-1][0]} to {history[0][0]}"
    raise CheckpointError(f"run {run!r} has no checkpoint {number!r}", f"It has {numbers}")
