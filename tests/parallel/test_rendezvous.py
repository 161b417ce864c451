"""Ranks meet those of their own start, whatever earlier starts have left in the store."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore

from bushcraft.errors import RunError
from bushcraft.parallel.rendezvous import host_store, meet
from bushcraft.parallel.world import World

RESTARTED = """
import os
from datetime import timedelta
from bushcraft.parallel.world import join, leave, world_of
import torch, torch.distributed as dist
torch.set_num_threads(1)
world, start = world_of(os.environ), os.environ["TORCHELASTIC_RESTART_COUNT"]
assert world.store_is_hosted
join(world, "cpu", timedelta(seconds=20))
x = torch.tensor(10.0 ** world.rank)
dist.all_reduce(x)
with open(f"sum-{start}-{world.rank}", "w") as file:
    file.write(str(x.item()))
if start == "0" and world.rank == 1:
    os._exit(3)
dist.barrier()
leave()
"""


@pytest.fixture
def store() -> TCPStore:
    return host_store()


def place(store: TCPStore, rank: int, n: int) -> World:
    return World(rank, n, rank, n, "127.0.0.1", store.port, store_is_hosted=True)


def meet_all(store: TCPStore, n: int, order: list[int], seconds: float = 20.0) -> list[PrefixStore]:
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(n) as pool:
        meetings = {rank: pool.submit(meet, place(store, rank, n), deadline) for rank in order}
        return [meetings[rank].result() for rank in sorted(order)]


def test_each_start_has_keys_of_its_own(store: TCPStore) -> None:
    for start in range(4):
        order = random.Random(start).sample(range(5), 5)
        stores = meet_all(store, 5, order)
        assert not any(mine.check(["of this start"]) for mine in stores)
        stores[start].set("of this start", str(start))
        assert [mine.get("of this start") for mine in stores] == [str(start).encode()] * 5


def test_ranks_that_died_before_all_had_come_are_not_waited_for(store: TCPStore) -> None:
    """The dead have signed in, and rank 0 among them has called the roll."""
    for dead in ([0, 1], [1, 2], [0, 2]):
        with pytest.raises(RunError, match="of 3 ranks"):
            meet_all(store, 3, dead, seconds=0.3)
    stores = meet_all(store, 3, [2, 1, 0])
    stores[1].set("key", "1")
    assert [mine.get("key") for mine in stores] == [b"1"] * 3


def test_dead_rank_is_no_answer(store: TCPStore) -> None:
    meet_all(store, 3, [0, 1, 2])
    deadline = time.monotonic() + 0.5
    with ThreadPoolExecutor(2) as pool:
        meetings = [pool.submit(meet, place(store, rank, 3), deadline) for rank in (0, 1)]
        with pytest.raises(RunError, match="of 3 ranks rank 2 did not come"):
            meetings[0].result()
        with pytest.raises(RunError, match="of 3 ranks some did not answer"):
            meetings[1].result()


def test_late_rank_replaces_a_dead_one_of_its_number(store: TCPStore) -> None:
    """Rank 0 calls the roll with a name of the dead, and calls it again when the living one has signed in."""
    store.set("rank-1", "dead")
    deadline = time.monotonic() + 20
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, place(store, 0, 2), deadline)
        store.wait(["roster"])
        assert b"dead" in store.get("roster")
        second = meet(place(store, 1, 2), deadline)
        second.set("key", "1")
        assert first.result().get("key") == b"1"


@pytest.mark.slow
def test_torchrun_starts_failed_ranks_anew(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RESTARTED)
    command = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2 --max-restarts 1 rank.py"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.glob("sum-*")} == {
        f"sum-{start}-{rank}": "11.0" for start in range(2) for rank in range(2)
    }
