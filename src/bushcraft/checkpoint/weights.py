"""The weights of a checkpoint into a model: all of them, or one line that says which do not fit."""

from torch import Tensor, nn

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest
from bushcraft.checkpoint.newest import newest
from bushcraft.checkpoint.tensors import load_tensor
from bushcraft.errors import CheckpointError
from bushcraft.store.depot import Depot

PREFIX = "model/"
"""In front of the names of a model's tensors; others are the optimizer's."""


def find_checkpoint(depot: Depot, run_or_manifest: str) -> tuple[str, CheckpointManifest]:
    """The newest whole checkpoint of a run, or the one whose manifest is that object: (object name, manifest).

    Errors: `CheckpointError` (there is none), `CorruptObjectError`, `StoreError`.
    """
    if len(run_or_manifest) == 64:
        return run_or_manifest, read_manifest(depot, run_or_manifest)
    found = newest(depot, run_or_manifest, lambda *_: None)
    if found is None:
        known = ", ".join(ref.removeprefix("checkpoints/") for ref in depot.refs("checkpoints")) or "none"
        raise CheckpointError(f"run {run_or_manifest!r} has no checkpoint", f"Runs that have: {known}")
    return found


def load_weights(
    depot: Depot, name: str, manifest: CheckpointManifest, model: nn.Module, grow_vocabulary: bool = False
) -> None:
    """Fill `model` from the checkpoint of that object name.

    With `grow_vocabulary` embeddings may have more rows than there; what is in the others is kept.
    Errors: `CheckpointError` that names the first tensor that is missing, left over or of another shape;
    `CorruptObjectError`, `StoreError`.
    """
    wanted = model_tensors(model)
    check_names(name, manifest, model)
    for key, target in wanted.items():
        shape = manifest.tensors[key].shape
        is_embedding = not {"embedding", "unembedding"}.isdisjoint(key.removeprefix(PREFIX).split("."))
        if grow_vocabulary and is_embedding and shape[0] < target.shape[0]:
            target = target[: shape[0]]
        load_tensor(depot, key.removeprefix(PREFIX), manifest.tensors[key], target)


def check_names(name: str, manifest: CheckpointManifest, model: nn.Module) -> None:
    """Errors: `CheckpointError` if the checkpoint of that object name has other tensors than `model`."""
    wanted, there = set(model_tensors(model)), {key for key in manifest.tensors if key.startswith(PREFIX)}
    _check_none(name, wanted - there, "misses")
    _check_none(name, there - wanted, "also has")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by the names that checkpoints give them."""
    return {PREFIX + key: parameter.data for key, parameter in model.named_parameters()}


def _check_none(name: str, found: set[str], what: str) -> None:
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise CheckpointError(
            f"checkpoint {name[:12]} is of another architecture: it {what} the tensor "
            f"{min(found).removeprefix(PREFIX)}{more}",
            "Use the [model] section of the recipe that it was made with: `bushcraft checkpoint list` names its run",
        )
