"""Look through the depots: is every object in each of them, and are its bytes right? What is not is mended.

It goes by name over all depots at once, as far as its budget reaches; the next one goes on there. References and
depot.json are few and are compared each time. What a depot's journal says is late is no damage.

    STORE/scrub.json      {WHICH: the name with which the next one begins}
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.care.marker import mend_marker
from bushcraft.store.care.sample import PREFIXES
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.durable import write_atomically
from bushcraft.store.mend import mend

AT_ONCE = 64
"""Objects that are verified at once, between two looks at the budget."""
_LANES = 4
"""Reads at once of one depot."""
CURSOR = "scrub.json"


@dataclass
class DepotReport:
    """What was found in one depot."""

    depot: str
    checked: int = 0
    """Copies that were looked for."""
    bytes: int = 0
    missing: int = 0
    corrupt: int = 0
    references: int = 0
    """Values of references that were missing."""
    markers: int = 0
    """1 if depot.json was missing or damaged."""
    late: int = 0
    """Known to be on their way: no damage."""
    repaired: int = 0
    lost: list[str] = field(default_factory=list)
    """Objects without a good copy anywhere."""
    not_repaired: list[str] = field(default_factory=list)
    """Objects that could not be written, that a depot that does not answer may have, or that were only checked."""
    seconds: float = 0.0
    error: str | None = None
    """Why it was left out from there on."""

    @property
    def damages(self) -> int:
        """All that was wrong."""
        return self.missing + self.corrupt + self.references + self.markers


@dataclass
class ScrubReport:
    """What was found in all of them."""

    depots: list[DepotReport]
    finished: bool = True
    """Whether it came to the last name; else the budget was spent before."""

    @property
    def damages(self) -> int:
        return sum(depot.damages for depot in self.depots)

    @property
    def lost(self) -> list[str]:
        """Objects without a good copy anywhere, sorted."""
        return sorted({name for depot in self.depots for name in depot.lost})

    @property
    def is_well(self) -> bool:
        """Whether all depots answered and have now all that they should."""
        return not any(depot.lost or depot.not_repaired or depot.error for depot in self.depots)


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many bytes or seconds."""

    bytes: float = float("inf")
    seconds: float = float("inf")


def _silent(*_: float) -> None:
    """Progress that nobody watches."""


def scrub(
    root: Path,
    depots: Depots,
    only: str | None = None,
    budget: Budget | None = None,
    progress: Callable[[float, int], None] = _silent,
) -> ScrubReport:
    """Look through all depots, or `only` one, from where the last one stopped, and mend what is bad.

    `progress` hears which share of the names is behind us, and the bytes read. Errors: `StoreError` if the cursor
    cannot be written, or there is no depot of that name.
    """
    looked_at = [member for member in depots.members if only in (None, member.name)]
    if not looked_at:
        raise StoreError(f"there is no depot {only!r}", f"There are {', '.join(m.name for m in depots.members)}")
    which, budget = only or "all", budget or Budget()
    work = _Scrub(root, depots, looked_at)
    work.mend_markers()
    begin = _read_cursor(root).get(which, "")
    next_name = work.objects(begin, budget, progress)
    work.references()
    _write_cursor(root, which, next_name or "")
    return work.finish(next_name is None)


def check(depots: Depots, names: Iterable[str], progress: Callable[[int, int], None] = _silent) -> ScrubReport:
    """Look for these objects in all depots, and mend nothing. `progress` hears how many, and the bytes read."""
    work = _Scrub(Path(), depots, list(depots.members), repair=False)
    names, n = iter(names), 0
    while batch := list(islice(names, AT_ONCE)):
        work.batch(batch)
        n += len(batch)
        progress(n, work.n_bytes)
    return work.finish(True)


class _Scrub:
    """One scrub's work."""

    def __init__(self, root: Path, depots: Depots, members: list[Depot], repair: bool = True) -> None:
        self._root, self._depots, self._members, self._repair = root, depots, members, repair
        self._reports = {member.name: DepotReport(member.name) for member in members}
        self._late = {member.name: _Late(depots, member) for member in members}
        self._errors: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(_LANES * len(members))
        self._began = time.monotonic()

    @property
    def n_bytes(self) -> int:
        return sum(report.bytes for report in self._reports.values())

    def finish(self, finished: bool) -> ScrubReport:
        self._pool.shutdown()
        for name, report in self._reports.items():
            report.error = self._errors.get(name)
        return ScrubReport(list(self._reports.values()), finished)

    def _give_up(self, depot: Depot, error: StoreError) -> None:
        """It is left out from here on."""
        self._errors.setdefault(depot.name, error.message)

    def mend_markers(self) -> None:
        for member in self._members:
            report = self._reports[member.name]
            settings = next(s for s in self._depots.settings.depots if s.name == member.name)
            try:
                if mend_marker(self._root, settings, member):
                    report.markers, report.repaired = 1, report.repaired + 1
            except StoreError as error:
                self._give_up(member, error)

    def objects(self, begin: str, budget: Budget, progress: Callable[[float, int], None]) -> str | None:
        """Look at all objects from the name `begin`; the name to go on with, or None at the end."""
        for prefix in range(int(begin[:2] or "0", 16), PREFIXES):
            listing = self._listed(f"{prefix:02x}")
            names = iter(sorted(name for name in listing if name >= begin))
            while batch := list(islice(names, AT_ONCE)):
                if self.n_bytes >= budget.bytes or time.monotonic() - self._began >= budget.seconds:
                    return batch[0]
                self.batch(batch)
                progress((int(batch[-1][:4], 16) + 1) / 16**4, self.n_bytes)
        return None

    def _listed(self, prefix: str) -> set[str]:
        """All objects of any depot: one that this depot lacks, another one has."""
        listing: set[str] = set()
        for member in self._depots.members:
            if member.name in self._errors:
                continue
            try:
                listing.update(name for name, _ in member.objects(prefix))
            except StoreError as error:
                self._give_up(member, error)
        return listing

    @property
    def _answering(self) -> list[Depot]:
        return [member for member in self._members if member.name not in self._errors]

    def batch(self, names: Sequence[str]) -> None:
        """Verify these objects in all depots that answer, then mend the bad copies."""
        tasks = [(m, name, self._pool.submit(self._examine, m, name)) for m in self._answering for name in names]
        for member, name, task in tasks:
            problem, n_bytes, seconds = task.result()
            report = self._reports[member.name]
            report.checked += 1
            report.bytes += n_bytes
            report.seconds += seconds
            if problem is not None:
                self._problem(member, report, name, problem)

    def _examine(self, member: Depot, name: str) -> tuple[StoreError | None, int, float]:
        """What is wrong with one copy; the bytes read, and the seconds that it took."""
        began = time.monotonic()
        try:
            size = member.size(name)
            member.verify(name)
        except StoreError as error:
            return error, 0, time.monotonic() - began
        return None, size, time.monotonic() - began

    def _problem(self, member: Depot, report: DepotReport, name: str, problem: StoreError) -> None:
        if isinstance(problem, UnreachableError):
            self._give_up(member, problem)
            return
        if isinstance(problem, MissingObjectError):
            if not self._depots.settings.is_complete(member.name):
                return
            if name in self._late[member.name]:
                report.late += 1
                return
            report.missing += 1
        else:
            report.corrupt += 1
        if self._repair:
            self._mend(member, report, name)
        else:
            report.not_repaired.append(name)

    def _mend(self, member: Depot, report: DepotReport, name: str) -> None:
        try:
            source = mend(name, member, self._depots.members, self._depots.staging)
        except StoreError:
            report.not_repaired.append(name)
            return
        if source is not None:
            report.repaired += 1
        elif any(_is_silent(other, name) for other in self._depots.members):
            report.not_repaired.append(name)
        else:
            report.lost.append(name)

    def references(self) -> None:
        """Give each depot the values that others have."""
        values = {member.name: self._values(member) for member in self._depots.members}
        union = set[tuple[str, int, str]]().union(*values.values())
        for member in self._answering:
            if not self._depots.settings.is_complete(member.name):
                continue
            report = self._reports[member.name]
            for ref, number, name in sorted(union - values[member.name]):
                if (ref, number, name) in self._late[member.name]:
                    report.late += 1
                    continue
                report.references += 1
                try:
                    member.add_ref(ref, number, name)
                    report.repaired += 1
                except StoreError as error:
                    self._give_up(member, error)
                    break

    def _values(self, member: Depot) -> set[tuple[str, int, str]]:
        try:
            return {(ref, number, name) for ref in member.refs() for number, name in member.ref_values(ref)}
        except StoreError as error:
            self._give_up(member, error)
            return set()


class _Late:
    """What one depot's journal says is on its way: object names, and (reference, number, name)."""

    def __init__(self, depots: Depots, member: Depot) -> None:
        self._lag, self._read_at = depots.lags[member.name], float("-inf")
        self._entries: set[str | tuple[str, int, str]] = set()

    def __contains__(self, what: str | tuple[str, int, str]) -> bool:
        """A writer notes it right after it has written elsewhere: the journal is read again now and then."""
        if what not in self._entries and time.monotonic() - self._read_at > 1:
            self._entries = set(self._read())
            self._read_at = time.monotonic()
        return what in self._entries

    def _read(self) -> Iterator[str | tuple[str, int, str]]:
        for _, late in self._lag.entries():
            yield late.object if late.ref is None else (late.ref, late.number, late.object)


def _is_silent(depot: Depot, name: str) -> bool:
    try:
        depot.has(name)
    except StoreError as error:
        return not isinstance(error, CorruptObjectError)
    return False


def _read_cursor(root: Path) -> dict[str, str]:
    """A cursor that is damaged is a scrub from the start."""
    try:
        cursor = json.loads((root / CURSOR).read_bytes())
        return {str(which): f"{int(name, 16):064x}" if name else "" for which, name in cursor.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cursor(root: Path, which: str, name: str) -> None:
    write_atomically(root / CURSOR, json.dumps({**_read_cursor(root), which: name}).encode())
