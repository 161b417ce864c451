"""Bring depots what they lack: what their journals say, and, where these cannot know, what a comparison finds."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bushcraft.errors import StoreError
from bushcraft.store.care.sample import PREFIXES
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.lag import LagSummary, Late

_SLICE = 1.0
"""Seconds between two looks at the progress."""


@dataclass
class DepotReplicated:
    """What one depot was given."""

    depot: str
    entries: int = 0
    """Objects and values of references."""
    left: LagSummary | None = None
    error: str | None = None
    """Why it is still behind."""


def replicate(
    depots: Depots, progress: Callable[[str, int, LagSummary], None] = lambda *_: None
) -> list[DepotReplicated]:
    """Work off all journals. `progress` hears the depot, how many entries are done, and what is left."""
    return [_catch_up(depots, member, progress) for member in depots.members]


def note_all(depots: Depots, progress: Callable[[float], None] = lambda _: None) -> dict[str, int]:
    """Compare what the depots hold, and note in the journals what each lacks; how much that was.

    For a depot that was added later, or journals that were lost. Errors: `StoreError` if a depot cannot be listed.
    """
    noted = dict.fromkeys((member.name for member in depots.members), 0)
    known = {member.name: {_key(late) for _, late in depots.lags[member.name].entries()} for member in depots.members}
    for prefix in range(PREFIXES):
        listings = {member.name: dict(member.objects(f"{prefix:02x}")) for member in depots.members}
        union: dict[str, int] = {}
        for listing in listings.values():
            union.update({name: max(size, union.get(name, 0)) for name, size in listing.items()})
        for depot, listing in listings.items():
            lacking = [Late(name, union[name], time.time()) for name in sorted(union) if name not in listing]
            noted[depot] += _note(depots, depot, [late for late in lacking if _key(late) not in known[depot]])
        progress((prefix + 1) / PREFIXES)
    values = {member.name: _values(member) for member in depots.members}
    every = set[tuple[str, int, str]]().union(*values.values())
    for depot, there in values.items():
        refs = [Late(name, 0, time.time(), ref, number) for ref, number, name in sorted(every - there)]
        noted[depot] += _note(depots, depot, [late for late in refs if _key(late) not in known[depot]])
    return noted


def _catch_up(depots: Depots, member: Depot, progress: Callable[[str, int, LagSummary], None]) -> DepotReplicated:
    report, lag = DepotReplicated(member.name), depots.lags[member.name]
    try:
        while lag:
            report.entries += depots.background.catch_up(member, _SLICE)
            progress(member.name, report.entries, lag.summary())
    except StoreError as error:
        report.error = error.message
    report.left = lag.summary()
    return report


def _note(depots: Depots, depot: str, late: list[Late]) -> int:
    if late and depots.settings.is_complete(depot):
        depots.lags[depot].add(*late)
        return len(late)
    return 0


def _values(depot: Depot) -> set[tuple[str, int, str]]:
    return {(ref, number, name) for ref in depot.refs() for number, name in depot.ref_values(ref)}


def _key(late: Late) -> tuple[str | None, int, str]:
    return late.ref, late.number, late.object
