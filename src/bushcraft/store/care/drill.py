"""Lose a depot without losing it: is everything that a reference keeps also elsewhere, and whole?"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.links import Closure, roots_of
from bushcraft.store.settings import StoreSettings

_AT_ONCE = 256
_LANES = 8


@dataclass(frozen=True)
class Loss:
    """One object that would be lost, and the first reference that needs it."""

    reference: str
    object: str
    why: str


@dataclass
class DrillReport:
    """What was read without the depot."""

    lose: str
    references: int = 0
    """Values of references, each of which was followed."""
    objects: int = 0
    """That they keep."""
    verified: int = 0
    bytes: int = 0
    losses: list[Loss] = field(default_factory=list)


def drill(
    root: Path,
    depots: Depots,
    lose: str,
    n_sample: int | None = None,
    random: Random | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> DrillReport:
    """Read and verify all that any reference keeps (or `n_sample` of its objects) without the depot `lose`.

    What only that depot knows of, references included, counts as lost. `progress` hears how many objects of how many
    are done. Errors: `StoreError` if there is no such depot, or no other one.
    """
    rest = _without(root, depots, lose)
    report, kept = DrillReport(lose), Closure()
    there = set(roots_of(rest))
    for reference, name in roots_of(depots):
        report.references += 1
        if (reference, name) in there:
            kept.add(rest, reference, name)
        else:
            report.losses.append(Loss(reference, name, f"only depot {lose} has the reference"))
    report.objects = len(kept)
    report.losses += [Loss(kept.root(name), name, error.message) for name, error in kept.broken.items()]
    names = list(kept) if n_sample is None else (random or Random()).sample(list(kept), min(n_sample, len(kept)))
    for name, error in _verify(rest, iter(names), report, progress, len(names)):
        if name not in kept.broken:
            report.losses.append(Loss(kept.root(name), name, error.message))
    return report


def _without(root: Path, depots: Depots, lose: str) -> Depots:
    """The other depots as a store of their own."""
    members = [member for member in depots.members if member.name != lose]
    if len(members) == len(depots.members):
        raise StoreError(f"there is no depot {lose!r}", f"There are {', '.join(m.name for m in depots.members)}")
    if not members:
        raise StoreError(f"depot {lose} is the only one: all would be lost", "Add another by `bushcraft store init`")
    settings = StoreSettings(depots=tuple(one for one in depots.settings.depots if one.name != lose))
    return Depots(members, settings, root)


def _verify(
    depot: Depot, names: Iterator[str], report: DrillReport, progress: Callable[[int, int], None], n_all: int
) -> Iterator[tuple[str, StoreError]]:
    """Read the objects; those that cannot be had, with the error."""

    def examine(name: str) -> int | StoreError:
        try:
            depot.verify(name)
            return depot.size(name)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(_LANES) as pool:
        while batch := list(islice(names, _AT_ONCE)):
            for name, outcome in zip(batch, pool.map(examine, batch), strict=True):
                if isinstance(outcome, StoreError):
                    yield name, outcome
                else:
                    report.verified, report.bytes = report.verified + 1, report.bytes + outcome
            progress(report.verified + len(report.losses), n_all)
