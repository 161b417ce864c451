"""What a ledger says of its run: what it was started with, and what was changed since, at which position.

The first event (`run`) pins everything that the recipe leaves to the machine: data set roots, number of
sequences, precision, threads. A `change` event holds the recipe from its position on. So the same command
goes on with the same run on any machine, and a changed weight or batch size is a record, not a new run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bushcraft.data.order import BatchSizeChange, Change, MixtureChange, Skip
from bushcraft.errors import RunError
from bushcraft.ledger.events import Event
from bushcraft.train.recipe import Recipe, differences

FREE = ("run.microbatch_size", "parallel.", "checkpoint.", "evaluate.", "data.cache_mib")
"""What may change at any time: it changes neither what is consumed nor when."""
ORDERED = ("run.global_batch_size",)
"""What may change, as a record that starts at a position. So may the weight of each source and each objective."""


@dataclass(frozen=True)
class RunRecord:
    """What a run was started with, after the machine's part was decided."""

    recipe: Recipe
    datasets: dict[str, str]
    """Source name → object name of its data set's manifest."""
    sequences: int
    precision: str
    threads: int
    code: str
    """Object name of the source code of the first start."""
    receipts: int = 1
    """How sequences enter the receipt: 1 those of a step by one digest, 2 each by its own."""
    start_from: str | None = None
    """Object name of the checkpoint whose weights the run began with."""

    def to_data(self) -> dict[str, Any]:
        """The data of the `run` event."""
        return {"format": "bushcraft-run", "version": 2, **vars(self), "recipe": self.recipe.to_json()}


def read_record(events: list[Event], name: str) -> RunRecord:
    """The record of a ledger that has begun."""
    data = dict(events[0].data)
    if (version := data.pop("version")) > 2 or data.pop("format") != "bushcraft-run":
        raise RunError(f"run {name!r} has format {version}, this is for 2", "Install a newer bushcraft")
    return RunRecord(**{**data, "recipe": Recipe.from_json(data["recipe"], f"the recipe of run {name!r}")})


def present_recipe(events: list[Event], name: str) -> Recipe:
    """The recipe after all changes."""
    texts = [events[0].data["recipe"], *(e.data["recipe"] for e in events if e.type == "change")]
    return Recipe.from_json(texts[-1], f"the recipe of run {name!r}")


def changed_keys(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """What `new` changes in a run that was going on with `old`.

    Errors: `RunError` if it changes what cannot change in mid-run.
    """
    different = differences(old, new)
    fixed = [key for key in different if not key.startswith(FREE) and not _is_ordered(key)]
    if set(old.data.sources) != set(new.data.sources):
        fixed = [*fixed, "data.sources"]
    if fixed:
        told = ", ".join(
            f"{key} ({different[key][0]} → {different[key][1]})" if key in different else key for key in fixed
        )
        raise RunError(
            f"run {new.run.name!r} was started with another recipe: {told}",
            "Train under another name by --set run.name=NAME, or take these changes back; "
            "weights, batch sizes, checkpoint and evaluate settings may change in mid-run",
        )
    return different


def order_changes(events: Iterable[Event], sources: list[str]) -> list[Change]:
    """The records of the order plane; one that was made later at an earlier position replaces what lay ahead."""
    changes: list[Change] = []
    for event in events:
        if event.type != "change":
            continue
        changes = [change for change in changes if change.position <= event.position]
        if "weights" in event.data:
            weights = event.data["weights"]
            changes.append(MixtureChange(event.position, tuple(weights[source] for source in sources)))
        if "global_batch_size" in event.data:
            changes.append(BatchSizeChange(event.position, event.data["global_batch_size"]))
        if "skip" in event.data:
            changes.append(Skip(event.position, event.data["skip"]))
    return changes


def objective_weights(events: Iterable[Event], first: Recipe) -> tuple[tuple[int, dict[str, float]], ...]:
    """From which position on the parts of the objective's mixture have which weights; the first begins at 0."""
    found = [(0, present_weights(first))]
    for event in events:
        if event.type == "change":
            found = [(position, weights) for position, weights in found if position <= event.position]
            if "objective_weights" in event.data:
                found.append((event.position, event.data["objective_weights"]))
    return tuple(found)


def change_data(recipe: Recipe, keys: Iterable[str]) -> dict[str, Any]:
    """The data of a `change` event to `recipe`, of which `keys` are new."""
    data: dict[str, Any] = {"recipe": recipe.to_json(), "keys": sorted(keys)}
    if any(map(_is_weight, keys)):
        data["weights"] = {name: source.weight for name, source in recipe.data.sources.items()}
    if any(map(_is_objective_weight, keys)):
        data["objective_weights"] = present_weights(recipe)
    if "run.global_batch_size" in data["keys"]:
        data["global_batch_size"] = recipe.run.global_batch_size
    return data


def present_weights(recipe: Recipe) -> dict[str, float]:
    """The weight of each part of the objective's mixture."""
    return {name: part.weight for name, part in recipe.objective.parts.items()}


def _is_ordered(key: str) -> bool:
    return key in ORDERED or _is_weight(key) or _is_objective_weight(key)


def _is_weight(key: str) -> bool:
    return key.startswith("data.sources.") and key.endswith(".weight")


def _is_objective_weight(key: str) -> bool:
    return key.startswith("objective.parts.") and key.endswith(".weight")
