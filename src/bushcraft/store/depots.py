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
from typing import Protocol, TypeVar

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.background import Background
from bushcraft.store.depot import Check, Depot, object_name
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.lag import Lag, Late
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import StoreSettings

T = TypeVar("T")


class RangeSource(Protocol):
    """Where verified bytes may be had quicker than from a depot."""

    def fetch(self, name: str, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of an object, unverified; None if it has them not, or does not answer."""

    def blame(self, name: str, begin: int, end: int) -> None:
        """What it gave was wrong."""

    def keep(self, name: str, begin: int, end: int, data: bytes) -> None:
        """Verified bytes that came from elsewhere."""


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
        self._seconds = dict.fromkeys((member.name for member in members), 0.0)

    def __str__(self) -> str:
        return ", ".join(map(str, self.members))

    @property
    def staging(self) -> Depot:
        """Where new files are written: on this machine's disk, if one of the depots is there."""
        return next((member for member in self.members if isinstance(member, LocalDepot)), self.members[0])

    # Objects

    def has(self, name: str) -> bool:
        return self._any(lambda depot: depot.has(name), bool) is not None

    def size(self, name: str) -> int:
        size = self._any(lambda depot: depot.size(name), lambda _: True)
        if size is None:
            raise self.missing(name)
        return size

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        return self._first_good(name, lambda depot: depot.fetch(name, begin, end), lambda _: True)

    def fetch_all(self, name: str) -> bytes:
        return self._first_good(name, lambda depot: depot.fetch_all(name), lambda _: True)

    def read(self, name: str) -> bytes:
        good = lambda data: object_name(data) == name  # noqa: E731
        at_hand = any(_quietly(depot.has, name) for depot in self._near)
        piece = (0, self.size(name)) if self.sources and not at_hand else None
        return self._first_good(name, lambda depot: depot.fetch_all(name), good, piece)

    def read_range(self, name: str, begin: int, end: int, good: Check) -> bytes:
        return self._first_good(name, lambda depot: depot.fetch(name, begin, end), good, (begin, end))

    def read_into(self, name: str, begin: int, end: int, memory: memoryview, good: Check) -> None:
        """In place from the first depot at hand; where that one has no good copy, as `read_range`."""
        nearest = next(iter(self._near), None)
        if nearest is not None:
            with contextlib.suppress(StoreError):
                nearest.read_into(name, begin, end, memory, good)
                return
        memory[:] = self.read_range(name, begin, end, good)

    def verify(self, name: str) -> None:
        """Whether some depot has a good copy; those that are asked before it and have none are mended."""
        failures: list[tuple[Depot, StoreError]] = []
        for member in [*self._near, *self._far]:
            try:
                member.verify(name)
            except StoreError as error:
                if member in self.members:
                    failures.append((member, error))
                continue
            self._mend(name, failures)
            return
        raise _worst(name, failures)

    def holds(self, name: str, size: int) -> bool:
        return self.settings.kept({member.name for member in self.members if _quietly(member.holds, name, size)})

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
        failures: list[tuple[Depot, StoreError]] = []
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
        return list({value for values in self._of_all(lambda depot: depot.ref_values(ref)) for value in values})

    def refs(self, prefix: str = "") -> list[str]:
        return sorted({ref for refs in self._of_all(lambda depot: depot.refs(prefix)) for ref in refs})

    def remove_ref(self, ref: str, number: int, name: str) -> None:
        for member in self.members:
            member.remove_ref(ref, number, name)

    # Writing

    def _to_copies(self, name: str, size: int, store: Callable[[Depot], None]) -> None:
        """Store in the first depots that make the policy whole; the others are noted as late."""
        there: set[str] = set()
        failures: list[tuple[Depot, StoreError]] = []
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

    def _too_few(self, what: str, there: set[str], failures: list[tuple[Depot, StoreError]]) -> StoreError:
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

    # Reading

    @property
    def _near(self) -> list[Depot]:
        """What this machine has at hand."""
        return [*self.tiers, *(member for member in self.members if isinstance(member, LocalDepot))]

    @property
    def _far(self) -> list[Depot]:
        """The other depots, by the seconds that reads took."""
        far = [member for member in self.members if not isinstance(member, LocalDepot)]
        return sorted(far, key=lambda member: self._seconds[member.name])

    def _first_good(
        self, name: str, get: Callable[[Depot], bytes], good: Check, piece: tuple[int, int] | None = None
    ) -> bytes:
        """The bytes from the first place that gives good ones; `piece` is what the sources are asked for."""
        failures: list[tuple[Depot, StoreError]] = []
        data = self._from_depots(self._near, name, get, good, failures)
        if data is None and piece:
            data = self._from_sources(name, piece, good)
        if data is None:
            data = self._from_depots(self._far, name, get, good, failures)
            if data is not None and piece:
                for source in self.sources:
                    source.keep(name, *piece, data)
        if data is None:
            raise _worst(name, failures)
        self._mend(name, failures)
        return data

    def _from_depots(
        self,
        depots: list[Depot],
        name: str,
        get: Callable[[Depot], bytes],
        good: Check,
        failures: list[tuple[Depot, StoreError]],
    ) -> bytes | None:
        for depot in depots:
            began = time.monotonic()
            try:
                data = get(depot)
                if good(data):
                    self._took(depot, time.monotonic() - began)
                    return data
                raise depot.corrupt(name)
            except StoreError as error:
                if depot in self.members:
                    failures.append((depot, error))
        return None

    def _took(self, depot: Depot, seconds: float) -> None:
        self._seconds[depot.name] = 0.9 * self._seconds.get(depot.name, seconds) + 0.1 * seconds

    def _mend(self, name: str, failures: list[tuple[Depot, StoreError]]) -> None:
        """Mend the copies that were bad, and those that were missing where they belong."""
        damaged = [
            (member, error)
            for member, error in failures
            if self.settings.is_complete(member.name) or not isinstance(error, MissingObjectError)
        ]
        self.background.mend(name, damaged)

    def _from_sources(self, name: str, piece: tuple[int, int], good: Check) -> bytes | None:
        for number, source in enumerate(self.sources):
            data = source.fetch(name, *piece)
            if data is None:
                continue
            if not good(data):
                source.blame(name, *piece)
                continue
            for nearer in self.sources[:number]:
                nearer.keep(name, *piece, data)
            return data
        return None

    def _any(self, ask: Callable[[Depot], T], enough: Callable[[T], bool]) -> T | None:
        """The first answer that is enough; None if none was. Errors: `UnreachableError` if a depot did not answer."""
        silent: StoreError | None = None
        for depot in [*self._near, *self._far]:
            try:
                answer = ask(depot)
            except MissingObjectError:
                continue
            except StoreError as error:
                silent = error
                continue
            if enough(answer):
                return answer
        if silent is not None:
            raise silent
        return None

    def _of_all(self, ask: Callable[[Depot], list[T]]) -> list[list[T]]:
        """The answers of all that answer. Errors: that of the last depot, if none does."""
        answers: dict[str, list[T]] = {}
        failure: StoreError | None = None
        for depot in (*self.tiers, *self.members):
            try:
                answers[depot.name] = ask(depot)
            except StoreError as error:
                failure = error
        if failure is not None and not any(member.name in answers for member in self.members):
            raise failure
        return list(answers.values())


def _quietly(ask: Callable[..., bool], *arguments: object) -> bool:
    try:
        return ask(*arguments)
    except StoreError:
        return False


def _worst(name: str, failures: list[tuple[Depot, StoreError]]) -> StoreError:
    """One error that says what each depot said; it may be there still if a depot did not answer."""
    if len(failures) == 1:
        return failures[0][1]
    kinds = {True: UnreachableError, False: CorruptObjectError}
    silent = any(isinstance(error, UnreachableError) for _, error in failures)
    if all(isinstance(error, MissingObjectError) for _, error in failures):
        kind: type[StoreError] = MissingObjectError
    else:
        kind = kinds[silent]
    said = ", ".join(f"{_word(error)} in {depot.name}" for depot, error in failures)
    return kind(f"object {name} cannot be had: {said}", "Wait until the depots answer" if silent else "Build it again")


def _word(error: StoreError) -> str:
    words = {MissingObjectError: "missing", CorruptObjectError: "corrupted", UnreachableError: "unreachable"}
    return words.get(type(error), error.message)
