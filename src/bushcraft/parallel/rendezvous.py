"""How ranks meet: a key-value store that one process hosts, and a roster of those who are there now.

torchrun keeps its store when it starts failed ranks anew, with the keys of those before them. A rank that takes an
address of a dead one for that of its peer waits in vain. So each process signs in under a name of its own, rank 0
writes the names into a roster, and only a roster that all of its ranks have confirmed counts: its number becomes the
prefix of all other keys. (The stores are public in torch's documentation, but not in its types: hence what mypy is
told to ignore.)
"""

import secrets
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import DistNetworkError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from bushcraft.errors import RunError

if TYPE_CHECKING:  # `join` imports us
    from bushcraft.parallel.world import World

_LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_ROSTER = "roster"


def host_store() -> TCPStore:
    """A store on a free port that only this machine reaches: a store has no password."""
    listener = socket.create_server((_LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(_LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def meet(world: "World", deadline: float) -> PrefixStore:
    """A store that all ranks of this start share, and nobody else.

    `deadline` is one of `time.monotonic`. Errors: `RunError` that says who was not there by then.
    """
    store = _open_store(world, deadline)
    name = secrets.token_hex(4)
    store.set(_signed_in(world.rank), name)
    if world.rank == 0:
        return PrefixStore(_call_roll(store, world, name, deadline), store)
    return PrefixStore(_answer_roll(store, world, name, deadline), store)


def _open_store(world: "World", deadline: float) -> TCPStore:
    hosts = world.rank == 0 and not world.store_is_hosted
    if not hosts:
        _wait_for_listener(world, deadline)
    try:
        return TCPStore(
            world.address,
            world.port,
            is_master=hosts,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(1.0, deadline - time.monotonic())),
        )
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise RunError(
            f"port {world.port} is taken on this machine, where rank 0 hosts the ranks' store",
            "Set MASTER_PORT to a free port, the same for all ranks",
        ) from error


def _wait_for_listener(world: "World", deadline: float) -> None:
    """Wait until somebody listens at the store's address: TCPStore would print a stack trace for each attempt."""
    while True:
        try:
            patience = max(_POLL_S, min(5.0, deadline - time.monotonic()))
            socket.create_connection((world.address, world.port), timeout=patience).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                who = "who started the ranks" if world.store_is_hosted else "rank 0"
                raise RunError(
                    f"rank {world.rank} found nobody at {world.address}:{world.port} ({error.strerror or error})",
                    f"Check that {who} runs there, and that this machine can reach it",
                ) from error
        time.sleep(_POLL_S)


def _call_roll(store: TCPStore, world: "World", name: str, deadline: float) -> str:
    """Rank 0: write rosters until all ranks of one have confirmed it; its number."""
    signed_in = [_signed_in(rank) for rank in range(world.world_size)]
    number, names = "", list[str]()
    wanted = signed_in
    while True:
        if store.check(signed_in):
            now = [value.decode() for value in store.multi_get(signed_in)]
            if now != names and now[0] == name:
                number, names = secrets.token_hex(4), now
                wanted = [_confirmed(number, rank) for rank in range(world.world_size)]
                store.set(wanted[0], "")
                store.set(_ROSTER, ",".join([number, *names]))
            if store.check(wanted):
                store.set(_complete(number), "")
                return number
        _wait_on(store, world, wanted, deadline)


def _answer_roll(store: TCPStore, world: "World", name: str, deadline: float) -> str:
    """Other ranks: confirm each roster that has our name, until one is complete; its number."""
    number = ""
    while True:
        if store.check([_ROSTER]):
            called, *names = store.get(_ROSTER).decode().split(",")
            if called != number and names[world.rank : world.rank + 1] == [name]:
                number = called
                store.set(_confirmed(number, world.rank), "")
        if number and store.check([_complete(number)]):
            return number
        _wait_on(store, world, [_signed_in(rank) for rank in range(world.world_size)], deadline)


def _wait_on(store: TCPStore, world: "World", wanted: list[str], deadline: float) -> None:
    """Wait a moment; after the deadline tell which ranks' keys of `wanted` are missing."""
    if time.monotonic() < deadline:
        return time.sleep(_POLL_S)
    missing = [rank for rank, key in enumerate(wanted) if not store.check([key])]
    who = f"{_listed(missing)} did not come" if missing else "some did not answer"
    raise RunError(
        f"of {world.world_size} ranks {who} at {world.address}:{world.port}",
        "Look at what was printed there, and check that as many ranks were started",
    )


def _signed_in(rank: int) -> str:
    return f"rank-{rank}"


def _confirmed(roster: str, rank: int) -> str:
    return f"{roster}-rank-{rank}"


def _complete(roster: str) -> str:
    return f"{roster}-complete"


def _listed(ranks: list[int], shown: int = 8) -> str:
    names = [str(rank) for rank in ranks[:shown]]
    more = f" and {len(ranks) - shown} more" if len(ranks) > shown else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(names)}{more}"
