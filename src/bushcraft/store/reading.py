"""The places of a store, asked one after another until one gives good bytes."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.depot import Check, Depot
from bushcraft.store.local import LocalDepot

T = TypeVar("T")
Failures = list[tuple[Depot, StoreError]]
"""The depots that gave nothing good, and why."""


class RangeSource(Protocol):
    """Where verified bytes may be had quicker than from a depot."""

    def fetch(self, name: str, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of an object, unverified; None if it has them not, or does not answer."""

    def blame(self, name: str, begin: int, end: int) -> None:
        """What it gave was wrong."""

    def keep(self, name: str, begin: int, end: int, data: bytes) -> None:
        """Verified bytes that came from elsewhere."""


class Reading:
    """What is at hand first, then the sources, then the depots that are far, the quickest first."""

    def __init__(
        self,
        members: Sequence[Depot],
        tiers: Sequence[Depot],
        sources: Sequence[RangeSource],
        mend: Callable[[str, Failures], None],
    ) -> None:
        """`mend` hears of an object that was good in one place and not in those that were asked before."""
        self.members, self.tiers, self.sources, self._mend = members, tiers, sources, mend
        self._seconds = dict.fromkeys((member.name for member in members), 0.0)

    @property
    def near(self) -> list[Depot]:
        """What this machine has at hand."""
        return [*self.tiers, *(member for member in self.members if isinstance(member, LocalDepot))]

    @property
    def far(self) -> list[Depot]:
        """The other depots, by the seconds that reads took."""
        far = [member for member in self.members if not isinstance(member, LocalDepot)]
        return sorted(far, key=lambda member: self._seconds[member.name])

    def first_good(
        self, name: str, get: Callable[[Depot], bytes], good: Check, piece: tuple[int, int] | None = None
    ) -> bytes:
        """The bytes from the first place that gives good ones; `piece` is what the sources are asked for."""
        failures: Failures = []
        data = self._from_depots(self.near, name, get, good, failures)
        if data is None and piece:
            data = self._from_sources(name, piece, good)
        if data is None:
            data = self._from_depots(self.far, name, get, good, failures)
            if data is not None and piece:
                for source in self.sources:
                    source.keep(name, *piece, data)
        if data is None:
            raise worst(name, failures)
        self._mend(name, failures)
        return data

    def _from_depots(
        self,
        depots: list[Depot],
        name: str,
        get: Callable[[Depot], bytes],
        good: Check,
        failures: Failures,
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

    def first_answer(self, ask: Callable[[Depot], T], enough: Callable[[T], bool]) -> T | None:
        """The first answer that is enough; None if none was. Errors: `UnreachableError` if a depot did not answer."""
        silent: StoreError | None = None
        for depot in [*self.near, *self.far]:
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

    def of_all(self, ask: Callable[[Depot], list[T]]) -> list[list[T]]:
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


def quietly(ask: Callable[..., bool], *arguments: object) -> bool:
    try:
        return ask(*arguments)
    except StoreError:
        return False


def worst(name: str, failures: Failures) -> StoreError:
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
