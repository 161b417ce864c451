"""The entries of all ranks as those of one manifest, in which each element of a tensor lies exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bushcraft.checkpoint.chunks import box_of
from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.errors import CheckpointError
from bushcraft.parallel.box import Box


def merge_entries(entries: Sequence[Mapping[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """The entries of all ranks as one, chunks in the order of their offsets.

    Errors: `CheckpointError` that names the first tensor whose chunks do not cover it exactly once.
    """
    merged: dict[str, TensorEntry] = {}
    for name in sorted({name for of_rank in entries for name in of_rank}):
        held = [of_rank[name] for of_rank in entries if name in of_rank]
        chunks = sorted((chunk for entry in held for chunk in entry.chunks), key=lambda chunk: chunk.offset)
        _check_cover(name, held[0].shape, [box_of(chunk) for chunk in chunks])
        merged[name] = replace(held[0], chunks=tuple(chunks))
    return merged


def _check_cover(name: str, shape: tuple[int, ...], boxes: list[Box]) -> None:
    """`boxes` are in the order of their offsets, so that only those can meet whose rows have not ended."""
    whole = Box.whole(shape)
    reaching: list[Box] = []
    for box in boxes:
        reaching = [other for other in reaching if other.offset[:1] == () or _end_row(other) > box.offset[0]]
        if any(not box.intersection(other).is_empty for other in reaching):
            raise _not_covered(f"tensor {name} was written twice, by two ranks, from {list(box.offset)} on")
        reaching.append(box)
    n_written = sum(whole.intersection(box).numel for box in boxes)
    if n_written != whole.numel:
        raise _not_covered(f"tensor {name}: no rank wrote {whole.numel - n_written} of its {whole.numel} elements")


def _end_row(box: Box) -> int:
    return box.offset[0] + box.shape[0]


def _not_covered(message: str) -> CheckpointError:
    return CheckpointError(message, "Nothing was published: the checkpoint before it stands. Save at another layout")
