"""How a store stands: each depot's size, how far it is behind, and whether the policy is kept.

It answers in a bounded time: what is much is estimated, and a depot that says nothing in `PATIENCE` seconds is told as
such.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from bushcraft.errors import BushcraftError
from bushcraft.store.background import REPAIRS
from bushcraft.store.care.sample import Estimate, estimate
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.lag import LagSummary

PATIENCE = 1.5
"""Seconds."""
REFERENCES = 200
"""As many are compared between depots."""


@dataclass
class DepotStatus:
    """One depot."""

    name: str
    place: str
    provider: str
    lag: LagSummary
    repairs: int
    """Copies mended after a read had noticed them."""
    error: str | None = None
    """Why it could not be asked."""
    size: Estimate | None = None
    refs: dict[str, int] = field(default_factory=dict)
    """References → the number of their newest value here."""
    refs_behind: int = 0
    """References of which another depot has a newer value."""


@dataclass
class StoreStatus:
    """All depots, and what the sample of objects that all of them listed says of the policy."""

    copies: int
    off_provider: int
    depots: list[DepotStatus]
    sampled: int = 0
    below_policy: int = 0
    """Of the sampled objects, how many have too few copies in the depots that answer."""

    @property
    def policy_kept(self) -> bool:
        return self.below_policy == 0


def status(root: Path, depots: Depots, patience: float = PATIENCE) -> StoreStatus:
    """Ask all depots at once."""
    repairs = _repairs(root)
    found = [
        DepotStatus(one.name, str(member), one.provider, depots.lags[one.name].summary(), repairs.get(one.name, 0))
        for one, member in zip(depots.settings.depots, depots.members, strict=True)
    ]
    _ask_all(found, depots, patience)
    newest: dict[str, int] = {}
    for depot in found:
        for ref, number in depot.refs.items():
            newest[ref] = max(number, newest.get(ref, 0))
    for depot in found:
        depot.refs_behind = sum(depot.refs.get(ref, 0) < number for ref, number in newest.items())
    whole = StoreStatus(depots.settings.copies, depots.settings.off_provider, found)
    _compare(whole, depots)
    return whole


def _ask_all(found: list[DepotStatus], depots: Depots, patience: float) -> None:
    """Threads that do not hinder the process from ending, should a depot never answer."""
    answers: list[DepotStatus | None] = [None] * len(found)

    def ask(place: int, member: Depot) -> None:
        about = found[place]
        answer = DepotStatus(about.name, about.place, about.provider, about.lag, about.repairs)
        try:
            answer.size = estimate(member)
            for ref in member.refs()[:REFERENCES]:
                answer.refs[ref] = max((number for number, _ in member.ref_values(ref)), default=0)
        except BushcraftError as error:
            answer.size, answer.error = None, error.message
        answers[place] = answer

    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in enumerate(depots.members)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for place, thread in enumerate(threads):
        thread.join(max(0.0, deadline - time.monotonic()))
        answer = answers[place]
        if answer is None:
            found[place].error = f"no answer in {patience:g} s"
        else:
            found[place] = answer


def _compare(whole: StoreStatus, depots: Depots) -> None:
    """The names before the least end were listed by every depot that answers: who lacks one, lacks it."""
    sizes = {depot.name: depot.size for depot in whole.depots if depot.size is not None}
    end = min((size.end for size in sizes.values()), default="")
    there: dict[str, set[str]] = {}
    for depot, size in sizes.items():
        for name in size.listed:
            if name < end:
                there.setdefault(name, set()).add(depot)
    whole.sampled = len(there)
    whole.below_policy = sum(not depots.settings.kept(names) for names in there.values())


def _repairs(root: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    path = root / REPAIRS
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            depot = json.loads(line)["depot"]
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed process left half
        counts[depot] = counts.get(depot, 0) + 1
    return counts
