"""A store's depots as one depot.

Writing: an object is in as many depots as the policy wants before the call returns; a reference is published in these;
the other depots follow in the background, in the order of writing, and how late they are is visible (`lag.py`).

Reading: the local depot, then the sources (this node's cache, the peers of the cluster), then the other depots, the
quickest first. Nothing is given that was not verified; a bad or missing copy costs time, and is mended from a good one.
"""

import contextlib
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from bushcraft.errors import MissingObjectError, StoreError, UnreachableError
from bushcraft.store.background import Background
from bushcraft.store.depot import Check, Depot, object_name
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.lag import Lag, Late
from bushcraft.store.local import LocalDepot
from bushcraft.store.reading import Failures, RangeSource, Reading, quietly, worst
from bushcraft.store.settings import StoreSettings


class Depots(Depot):
    """The depots of a store, the nearest first, under its policy.

    `tiers` are depots that may be read first and count for nothing, such as one in this node's memory.
    """

    def __init__(
        self,
        members: Sequence[Depot],
        settings: StoreSettings,
        root: Path,
        sources: Sequence[RangeSource] = (),
        tiers: Sequence[Depot] = (),
    ) -> None:
        self.name = "store"
        self.members = tuple(members)
        self.settings = settings
        self.sources = tuple(sources)
        self.tiers = tuple(tiers)
        self.lags = {member.name: Lag(root / "lag", member.name) for member in members}
        self.background = Background(self.members, self.lags, self.staging, root)
        self._reading = Reading(self.members, self.tiers, self.sources, self._mend)

    def __str__(self) -> str:
        return ", ".join(map(str, self.members))

    @property
    def staging(self) -> Depot:
        """Where new files are written: on this machine's disk, if one of the depots is there."""
        return next((member for member in self.members if isinstance(member, LocalDepot)), self.members[0])

    # Objects

    def has(self, name: str) -> bool:
        return self._reading.first_answer(lambda depot: depot.has(name), bool) is not None

    def size(self, name: str) -> int:
        size = self._reading.first_answer(lambda depot: depot.size(name), lambda _: True)
        if size is None:
            raise self.missing(name)
        return size

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        return self._reading.first_good(name, lambda depot: depot.fetch(name, begin, end), lambda _: True)

    def fetch_all(self, name: str) -> bytes:
        return self._reading.first_good(name, lambda depot: depot.fetch_all(name), lambda _: True)

    def read(self, name: str) -> bytes:
        good = lambda data: object_name(data) == name  # noqa: E731
        at_hand = any(quietly(depot.has, name) for depot in self._reading.near)
        piece = (0, self.size(name)) if self.sources and not at_hand else None
        return self._reading.first_good(name, lambda depot: depot.fetch_all(name), good, piece)

    def read_range(self, name: str, begin: int, end: int, good: Check) -> bytes:
        return self._reading.first_good(name, lambda depot: depot.fetch(name, begin, end), good, (begin, end))

    def read_into(self, name: str, begin: int, end: int, memory: memoryview, good: Check) -> None:
        """In place from the first depot at hand; where that one has no good copy, as `read_range`."""
        nearest = next(iter(self._reading.near), None)
        if nearest is not None:
            with contextlib.suppress(StoreError):
                nearest.read_into(name, begin, end, memory, good)
                return
        memory[:] = self.read_range(name, begin, end, good)

    def verify(self, name: str) -> None:
        """Whether some depot has a good copy; those that are asked before it and have none are mended."""
        failures: Failures = []
        for member in [*self._reading.near, *self._reading.far]:
            try:
                member.verify(name)
            except StoreError as error:
                if member in self.members:
                    failures.append((member, error))
                continue
            self._mend(name, failures)
            return
        raise worst(name, failures)

    def holds(self, name: str, size: int) -> bool:
        return self.settings.kept({member.name for member in self.members if quietly(member.holds, name, size)})

    def store_bytes(self, name: str, data: bytes | memoryview) -> None:
        self._to_copies(name, len(data), lambda member: member.store_bytes(name, data))

    def store_file(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        local = self.staging if isinstance(self.staging, LocalDepot) else None

        def store(member: Depot) -> None:
            """The local depot may take the file away: others read it there then."""
            member.store_file(name, path if local is None or path.exists() else local.path(name))

        self._to_copies(name, size, store)

    def new_file(self) -> IncomingFile:
        return self.staging.new_file()

    def put_bytes(self, data: bytes | memoryview) -> str:
        name = object_name(data)
        self.store_bytes(name, data)
        return name

    def put_file(self, new: IncomingFile) -> str:
        with new:
            name = new.finish()
            self.store_file(name, new.path)
        return name

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The union over the depots; where sizes differ, the largest. One that cannot be listed is an error."""
        listed = heapq.merge(*(member.objects(prefix) for member in self.members))
        for name, found in groupby(listed, key=lambda entry: entry[0]):
            yield name, max(size for _, size in found)

    def remove_object(self, name: str) -> None:
        for member in self.members:
            member.remove_object(name)

    def remove_abandoned_files(self) -> None:
        for member in self.members:
            member.remove_abandoned_files()

    # References

    def add_ref(self, ref: str, number: int, name: str) -> None:
        """In as many depots as the policy wants, each of which has all that was written before it."""
        late = Late(name, 0, time.time(), ref, number)
        there: set[str] = set()
        failures: Failures = []
        waiting = []
        for member in self.members:
            if self.settings.kept(there):
                waiting.append(member)
                continue
            try:
                self.background.catch_up(member)
                member.add_ref(ref, number, name)
                there.add(member.name)
            except StoreError as error:
                failures.append((member, error))
                waiting.append(member)
        if not self.settings.kept(there):
            raise self._too_few(f"reference {ref}", there, failures)
        self._follow(waiting, late)
        self.background.follow()

    def ref_values(self, ref: str) -> list[tuple[int, str]]:
        return list({value for values in self._reading.of_all(lambda depot: depot.ref_values(ref)) for value in values})

    def refs(self, prefix: str = "") -> list[str]:
        return sorted({ref for refs in self._reading.of_all(lambda depot: depot.refs(prefix)) for ref in refs})

    def remove_ref(self, ref: str, number: int, name: str) -> None:
        for member in self.members:
            member.remove_ref(ref, number, name)

    # Writing

    def _to_copies(self, name: str, size: int, store: Callable[[Depot], None]) -> None:
        """Store in the first depots that make the policy whole; the others are noted as late."""
        there: set[str] = set()
        failures: Failures = []
        waiting = list(self.members)
        while waiting and not self.settings.kept(there):
            chosen = self._still_needed(waiting, there)
            waiting = [member for member in waiting if member not in chosen]
            for member, error in self._store_in(chosen, name, size, store):
                if error is None:
                    there.add(member.name)
                else:
                    failures.append((member, error))
        if not self.settings.kept(there):
            raise self._too_few(f"object {name}", there, failures)
        late = Late(name, size, time.time())
        self._follow([*waiting, *(member for member, _ in failures)], late)

    def _follow(self, members: list[Depot], late: Late) -> None:
        """Note what these depots have not got yet, if it belongs there."""
        for member in members:
            if self.settings.is_complete(member.name):
                self.lags[member.name].add(late)

    def _still_needed(self, waiting: list[Depot], there: set[str]) -> list[Depot]:
        """As few of the depots, the first ones, as make the policy whole; all of them if they do not."""
        chosen = list(waiting)
        for member in reversed(waiting):
            fewer = [other for other in chosen if other is not member]
            if self.settings.kept(there | {other.name for other in fewer}):
                chosen = fewer
        return chosen

    def _store_in(
        self, chosen: list[Depot], name: str, size: int, store: Callable[[Depot], None]
    ) -> list[tuple[Depot, StoreError | None]]:
        """The local depot first, which may move the file; then the others, at once."""

        def attempt(member: Depot) -> tuple[Depot, StoreError | None]:
            try:
                if not member.holds(name, size):
                    store(member)
            except StoreError as error:
                return member, error
            return member, None

        near = [member for member in chosen if isinstance(member, LocalDepot)]
        far = [member for member in chosen if member not in near]
        done = [attempt(member) for member in near]
        if len(far) > 1:
            with ThreadPoolExecutor(len(far)) as pool:
                return done + list(pool.map(attempt, far))
        return done + [attempt(member) for member in far]

    def _too_few(self, what: str, there: set[str], failures: Failures) -> StoreError:
        reasons = "; ".join(f"{member.name}: {error.message}" for member, error in failures)
        wanted = f"{self.settings.copies} depots" + (
            f", {self.settings.off_provider} of them off-provider" if self.settings.off_provider else ""
        )
        silent = any(isinstance(error, UnreachableError) for _, error in failures)
        kind = UnreachableError if silent else StoreError
        return kind(
            f"{what} is in {len(there)} depots and not in {wanted} ({reasons})",
            "Nothing that was published is lost; the same command goes on when the depots answer",
        )

    def _mend(self, name: str, failures: Failures) -> None:
        """Mend the copies that were bad, and those that were missing where they belong."""
        damaged = [
            (member, error)
            for member, error in failures
            if self.settings.is_complete(member.name) or not isinstance(error, MissingObjectError)
        ]
        self.background.mend(name, damaged)
