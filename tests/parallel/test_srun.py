"""Ranks meet under the srun of a real Slurm: two nodes of a test bed, no simulated variables.

`BUSHCRAFT_TESTBED` is a command that knows `up`, `ssh HOST COMMAND` and `down` for a site `alpha` of real Slurm
daemons, whose hosts see this file system but /tmp.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
TESTBED = os.environ.get("BUSHCRAFT_TESTBED")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TESTBED is None, reason="BUSHCRAFT_TESTBED is not set: no real Slurm to start srun in"),
]
JOIN = """
import os
from datetime import timedelta
from bushcraft.parallel.world import join, leave, world_of
import torch, torch.distributed as dist
torch.set_num_threads(1)
world = world_of(os.environ)
join(world, "cpu", timedelta(seconds=60))
total = torch.tensor(float(world.rank))
dist.all_reduce(total)
leave()
print(world.rank, world.local_rank, world.local_world_size, world.address, int(total), flush=True)
"""
TELL = """
import os
from bushcraft.parallel.world import world_of
try:
    print(world_of(os.environ))
except Exception as error:
    print(error)
"""


def ask_testbed(*arguments: str) -> str:
    command = [*shlex.split(TESTBED or ""), "--index", "253", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=90).stdout


def on_login_host(starter: str, program: str) -> list[str]:
    """What Python prints when `starter` starts it on the site, one line a task, sorted."""
    python = shlex.join([sys.executable, "-c", program])
    printed = ask_testbed("ssh", "alpha-login", f"PYTHONPATH={shlex.quote(str(SOURCES))} {starter} {python}")
    return sorted(printed.splitlines())


@pytest.fixture(scope="module", autouse=True)
def site() -> Iterator[None]:
    ask_testbed("up", "--sites", "alpha:2", "--plain-hosts", "0", "--gpus", "0")
    yield
    ask_testbed("down")


def test_tasks_on_two_nodes_meet() -> None:
    assert on_login_host("srun --nodes 2 --ntasks 3", JOIN) == [
        "0 0 2 alpha-1 3",
        "1 1 2 alpha-1 3",
        "2 0 1 alpha-1 3",
    ]


def test_no_ranks_are_told_outside_of_srun_or_by_a_single_task() -> None:
    assert on_login_host("salloc --quiet --ntasks 2", TELL) == ["None"]
    assert on_login_host("srun --ntasks 1", TELL) == ["None"]


def test_tasks_that_the_user_distributes_want_an_address() -> None:
    starter = "srun --quiet --nodes 2 --ntasks 2 --distribution arbitrary --nodelist alpha-2,alpha-1"
    told = on_login_host(starter, TELL)
    assert [line.partition(",")[0] for line in told] == ["SLURM_DISTRIBUTION is 'arbitrary'"] * 2
