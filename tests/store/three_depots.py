"""A store of three directories at two providers, with something in it, and what can happen to it."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from bushcraft.errors import UnreachableError
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, GcSettings, StoreSettings, write_settings
from bushcraft.store.workspace import Store

NAMES = ("local", "b", "c")


def three_depots(root: Path, copies: int = 2, off_provider: int = 1, grace_days: float = 7, gc: bool = True) -> Store:
    """`local` and `b` here, `c` at another provider."""
    settings = StoreSettings(
        copies=copies,
        off_provider=off_provider,
        depots=(
            DepotSettings(name="local", url="depot"),
            DepotSettings(name="b", url="b"),
            DepotSettings(name="c", url="c", provider="there"),
        ),
        gc=GcSettings(enabled=gc, grace_days=grace_days),
    )
    for one in settings.depots:
        LocalDepot.create(root / one.url, one.name)
    write_settings(root, settings)
    return Store.create(root)


def depots_of(store: Store) -> Depots:
    assert isinstance(store.depot, Depots)
    return store.depot


def directory(store: Store, name: str) -> LocalDepot:
    found = next(member for member in depots_of(store).members if member.name == name)
    assert isinstance(found, LocalDepot)
    return found


def fill(store: Store, n_objects: int, seed: int = 0, most_bytes: int = 3000) -> dict[str, bytes]:
    """Objects of random bytes and references, in all depots."""
    random = Random(seed)
    data = [random.randbytes(random.randrange(1, most_bytes)) for _ in range(n_objects)]
    objects = {store.depot.put_bytes(one): one for one in data}
    for number, name in enumerate(objects):
        if number % 10 == 0:
            store.depot.publish(f"things/{number // 50}", name)
    catch_up(store)
    return objects


def catch_up(store: Store) -> None:
    store_depots = depots_of(store)
    store_depots.background.wait()
    for member in store_depots.members:
        store_depots.background.catch_up(member)


def damage(store: Store, n: int, random: Random) -> int:
    """As many different damages, never to all three copies of a thing; how many bytes of objects are wrong now."""
    members = [directory(store, name) for name in NAMES]
    names = sorted(name for name, _ in members[0].objects())
    values = sorted((ref, *value) for ref in members[0].refs() for value in members[0].ref_values(ref))
    things: list[object] = [*random.sample(names, n - n // 5), *random.sample(values, n // 5)]
    for thing in things:
        depot = random.choice(members)
        if isinstance(thing, str):
            random.choice((flip, truncate, delete))(depot.path(thing), random)
        else:
            depot.remove_ref(*thing)  # type: ignore[misc]
    return len(things)


def flip(path: Path, random: Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def delete(path: Path, _: Random) -> None:
    path.unlink()


def silence(depot: Depot, monkeypatch_setattr: Callable[..., None]) -> None:
    """It answers nothing any more."""

    def no_answer(*_: object) -> None:
        raise UnreachableError(f"depot {depot.name} does not answer")

    for method in ("has", "size", "fetch", "fetch_all", "holds", "objects", "refs", "ref_values", "add_ref", "verify"):
        monkeypatch_setattr(depot, method, no_answer)
