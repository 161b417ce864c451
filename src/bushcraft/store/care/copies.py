"""In how many depots an object is whole, and whether that is enough to delete anything beside it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bushcraft.errors import StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots

NEEDED_COPIES = "two, at two providers, and the policy's"
_LANES = 8


def too_few_copies(depots: Depots, names: Sequence[str], single: bool) -> Iterator[tuple[str, str]]:
    """The objects with too few good copies, and what they have; `single`: one is enough.

    Copies are read only as far as it takes to be sure.
    """
    with ThreadPoolExecutor(_LANES) as pool:
        for name, found in zip(names, pool.map(lambda name: _found(depots, name, single), names), strict=True):
            if found is not None:
                yield name, found


def _found(depots: Depots, name: str, single: bool) -> str | None:
    """What there is of it, if that is too little."""
    there: set[str] = set()
    for member in depots.members:
        if _is_whole(member, name):
            there.add(member.name)
        if _enough(depots, there, single):
            return None
    return f"good copies in {', '.join(sorted(there))}" if there else "no good copy"


def _enough(depots: Depots, there: set[str], single: bool) -> bool:
    providers = {one.provider for one in depots.settings.depots if one.name in there}
    return depots.settings.kept(there) and (single or (len(there) >= 2 and len(providers) >= 2))


def _is_whole(member: Depot, name: str) -> bool:
    try:
        member.verify(name)
    except StoreError:
        return False
    return True
