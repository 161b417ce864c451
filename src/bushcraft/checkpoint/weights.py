"""The weights of a checkpoint into a model: all of them, or one line that says which do not fit."""

from collections.abc import Mapping

from torch import Tensor, nn

from bushcraft.checkpoint.manifest import CheckpointManifest, TensorEntry, read_manifest
from bushcraft.checkpoint.named import manifest_named
from bushcraft.checkpoint.newest import newest
from bushcraft.checkpoint.tensors import load_parts
from bushcraft.errors import CheckpointError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot

PREFIX = "model/"
"""In front of the names of a model's tensors; others are the optimizer's."""


def find_checkpoint(depot: Depot, run_or_manifest: str) -> tuple[str, CheckpointManifest]:
    """The newest whole checkpoint of RUN, or the one that RUN@NUMBER or an object name means: (object name, manifest).

    Errors: `CheckpointError` (there is none), `CorruptObjectError`, `StoreError`.
    """
    if "@" in run_or_manifest:
        run_or_manifest = manifest_named(depot, run_or_manifest)
    if len(run_or_manifest) == 64:
        return run_or_manifest, read_manifest(depot, run_or_manifest)
    found = newest(depot, run_or_manifest, lambda *_: None)
    if found is None:
        known = ", ".join(ref.removeprefix("checkpoints/") for ref in depot.refs("checkpoints")) or "none"
        raise CheckpointError(f"run {run_or_manifest!r} has no checkpoint", f"Runs that have: {known}")
    return found


def load_weights(
    depot: Depot,
    name: str,
    manifest: CheckpointManifest,
    model: nn.Module | Mapping[str, Part],
    grow_vocabulary: bool = False,
) -> None:
    """Fill a model, or what a rank holds of one by parameter name, from the checkpoint of that object name.

    Of parts, which may be those of one pipeline stage, only what the checkpoint misses is refused; of a model also
    what is left over. With `grow_vocabulary` embeddings may have more rows than there; what is in the others is kept.
    Errors: `CheckpointError` that names the first tensor that is missing, left over or of another shape;
    `CorruptObjectError`, `StoreError`.
    """
    if isinstance(model, nn.Module):
        check_names(name, manifest, model)
        parts = {key: Part.whole(parameter.data) for key, parameter in model.named_parameters()}
    else:
        parts = dict(model)
        _check_none(name, {PREFIX + key for key in parts} - set(manifest.tensors), "misses")
    entries = {key.removeprefix(PREFIX): entry for key, entry in manifest.tensors.items()}
    if grow_vocabulary:
        parts = {key: _known_rows(key, part, entries[key]) for key, part in parts.items()}
    load_parts(depot, entries, parts)


def _known_rows(key: str, part: Part, entry: TensorEntry) -> Part:
    """Of an embedding with more rows than the checkpoint has, the rows that it has; else the part itself."""
    is_embedding = not {"embedding", "unembedding"}.isdisjoint(key.split("."))
    if not is_embedding or entry.shape[0] >= part.global_shape[0]:
        return part
    shape = (entry.shape[0], *part.global_shape[1:])
    known = Box.whole(shape).intersection(part.box)
    return Part(part.tensor[known.within(part.box)], known, shape, part.writes)


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
