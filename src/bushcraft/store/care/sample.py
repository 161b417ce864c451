"""Fair samples of a depot's objects: their names are hashes, so that any stretch of names is one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from bushcraft.store.depot import Depot

PREFIXES = 256
"""The two hexadecimal digits with which names begin."""
ENOUGH = 10_000
"""Objects that are listed to estimate how many there are, within 2 % (95 % of the time)."""
_SPREAD = 8
"""Stretches of names from which a sample comes at least, if there are so many."""


@dataclass(frozen=True)
class Estimate:
    """How much a depot holds: exact where it is little."""

    objects: int
    bytes: int
    exact: bool
    end: str
    """The names before this one were listed; all of them, if it is exact."""
    listed: dict[str, int] = field(repr=False)
    """These names, with the objects' sizes."""


def estimate(depot: Depot, enough: int = ENOUGH) -> Estimate:
    """Objects and bytes, from the first `enough` names in their order. Errors: those of `Depot.objects`."""
    listed = dict(islice(depot.objects(), enough + 1))
    n_bytes = sum(listed.values())
    if len(listed) <= enough:
        return Estimate(len(listed), n_bytes, True, "g", listed)
    end, size = listed.popitem()
    share = int(end[:13], 16) / 16**13
    return Estimate(round(enough / share), round((n_bytes - size) / share), False, end, listed)


def sample(depot: Depot, n: int, random: Random) -> list[str]:
    """The names of `n` objects at random, or of all, if they are fewer. Errors: those of `Depot.objects`."""
    found: list[str] = []
    for names in _stretches(depot, random):
        found += random.sample(names, min(len(names), n - len(found), max(1, n // _SPREAD)))
        if len(found) == n:
            return found
    return found if len(found) == n else _all_or_any(depot, n, random)


def _stretches(depot: Depot, random: Random) -> Iterator[list[str]]:
    for prefix in random.sample(range(PREFIXES), PREFIXES):
        yield [name for name, _ in depot.objects(f"{prefix:02x}")]


def _all_or_any(depot: Depot, n: int, random: Random) -> list[str]:
    """No stretch had enough: there are few objects."""
    names = [name for name, _ in depot.objects()]
    return random.sample(names, min(n, len(names)))
