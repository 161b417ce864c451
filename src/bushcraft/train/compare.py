"""Are two runs the same run? Their recipes, what they consumed, and the bits of their weights."""

from dataclasses import dataclass
from typing import Any

from bushcraft.checkpoint.difference import different_tensors
from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.workspace import Store
from bushcraft.train.open_data import open_datasets, open_loader
from bushcraft.train.receipt import receipts
from bushcraft.train.recipe import differences
from bushcraft.train.run_record import present_recipe, read_record


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common."""

    recipe: dict[str, tuple[Any, Any]]
    """Keys that differ (the run's name apart)."""
    compared_to: int
    """The last position at which both have a receipt; 0 if there is none."""
    first_difference: int | None
    """The first position whose sequence differs; None if all receipts agree."""
    weights_at: int | None
    """The last position of which both have a checkpoint."""
    different_tensors: list[str]
    """Tensors (of the model and the optimizer) whose bits differ there."""

    ends: tuple[int, int]
    """How far each run has come."""

    @property
    def identical(self) -> bool:
        """The same sequences consumed, and the same bits in every tensor where both runs end."""
        same_end = self.ends == (self.weights_at, self.weights_at)
        return same_end and self.first_difference is None and not self.different_tensors


def compare(store: Store, a: str, b: str) -> Comparison:
    """Compare two runs of one store, which may have been saved at any layouts. Errors: `RunError`, `StoreError`."""
    events = {name: read_ledger(store.runs / name, name) for name in (a, b)}
    found = differences(present_recipe(events[a], a), present_recipe(events[b], b))
    found.pop("run.name", None)
    ours, theirs = receipts(events[a]), receipts(events[b])
    common = sorted(set(ours) & set(theirs))
    differing = next((position for position in common if ours[position] != theirs[position]), None)
    first = None
    if differing is not None:
        agreed = max((position for position in common if position < differing), default=0)
        first = _first_differing_position(store, events, agreed, differing)
    weights_at, tensors = _compare_weights(store, events[a], events[b])
    ends = (max(ours, default=0), max(theirs, default=0))
    return Comparison(found, common[-1] if common else 0, first, weights_at, tensors, ends)


def _first_differing_position(store: Store, events: dict[str, list[Event]], begin: int, end: int) -> int:
    """Read both runs' sequences at positions [begin, end) again, to find the first that is not the same."""
    loaders = []
    for name, history in events.items():
        record = read_record(history, name)
        datasets = open_datasets(store, record.recipe, record.datasets)
        loaders.append(open_loader(store, record.recipe, record, datasets, history))
    for position in range(begin, end):
        one, other = (loader.rows(position, position + 1) for loader in loaders)
        if one.tokens.tobytes() != other.tokens.tobytes():
            return position
    return begin


def _compare_weights(store: Store, a: list[Event], b: list[Event]) -> tuple[int | None, list[str]]:
    saved_a, saved_b = _checkpoints(a), _checkpoints(b)
    common = set(saved_a) & set(saved_b)
    if not common:
        return None, []
    last = max(common)
    one, other = (read_manifest(store.depot, name) for name in (saved_a[last], saved_b[last]))
    return last, different_tensors(store.depot, one.tensors, other.tensors)


def _checkpoints(events: list[Event]) -> dict[int, str]:
    """Position → manifest of the last checkpoint there."""
    saved = (e for e in events if e.type == "checkpoint" and not {"unusable", "failed"} & e.data.keys())
    return {e.position: e.data["manifest"] for e in saved}
