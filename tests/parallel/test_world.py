"""A rank knows its place from whoever started it, and joins the others or says in time who is missing."""

import os
import re
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.errors import RunError
from bushcraft.parallel.slurm import first_host, port_of_step, tasks_on_node
from bushcraft.parallel.world import World, join, leave, world_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host-a",
    "MASTER_PORT": "29400",
}
ALLOCATION = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_NTASKS": "8",
    "SLURM_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
"""What a batch script sees, which is no rank."""
SRUN = {
    **ALLOCATION,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[02-04]",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}
POD = {"JOB_COMPLETION_INDEX": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "train-0.train"}
PLACES = {"torchrun": TORCHRUN, "srun": SRUN, "pod": POD}


def test_torchrun_tells_the_place() -> None:
    assert world_of(TORCHRUN) == World(5, 8, 1, 4, "host-a", 29400)
    hosted = world_of({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert hosted == World(5, 8, 1, 4, "host-a", 29400, store_is_hosted=True)


def test_srun_tells_the_place_by_the_step_not_the_allocation() -> None:
    assert world_of(SRUN) == World(4, 5, 0, 1, "gpu02", port_of_step(4242, 0))
    assert world_of({**SRUN, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}) == World(
        3, 5, 1, 2, "gpu02", port_of_step(4242, 0)
    )
    said = world_of({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "31000"})
    assert said is not None
    assert (said.address, said.port) == ("10.0.0.7", 31000)


def test_srun_without_variables_of_the_step_tells_the_place() -> None:
    old = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP_") or name == "SLURM_STEP_ID"}
    assert world_of({**old, "SLURM_NODEID": "2"}) == World(4, 8, 0, 2, "gpu01", port_of_step(4242, 0))


def test_srun_that_may_put_rank_0_on_any_host_wants_an_address() -> None:
    with pytest.raises(RunError, match=r"^SLURM_DISTRIBUTION is 'arbitrary'.* Set MASTER_ADDR"):
        world_of({**SRUN, "SLURM_DISTRIBUTION": "arbitrary"})
    told = world_of({**SRUN, "SLURM_DISTRIBUTION": "arbitrary", "MASTER_ADDR": "gpu03"})
    assert told is not None
    assert told.address == "gpu03"


def test_indexed_job_tells_the_place() -> None:
    assert world_of(POD) == World(3, 4, 0, 1, "train-0.train", 29500)
    pod_of_two = {**POD, "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "7000"}
    assert world_of(pod_of_two) == World(7, 8, 1, 2, "train-0.train", 7000)


def test_torchrun_inside_of_a_pod_or_a_step_counts() -> None:
    assert world_of({**POD, **SRUN, **TORCHRUN}) == world_of(TORCHRUN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "8", "MASTER_ADDR": "host-a"},
        {"JOB_COMPLETION_INDEX": "3"},
        ALLOCATION,
        {**ALLOCATION, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "8"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["nothing", "no rank", "an index alone", "batch script", "salloc's shell", "srun of one task"],
)
def test_nobody_started_ranks(environment: dict[str, str]) -> None:
    assert world_of(environment) is None


@pytest.mark.parametrize(
    ("place", "name"),
    [("torchrun", name) for name in TORCHRUN]
    + [("srun", name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")]
    + [("pod", "MASTER_ADDR")],
)
def test_missing_variable_is_named(place: str, name: str) -> None:
    environment = {key: value for key, value in PLACES[place].items() if key != name}
    with pytest.raises(RunError, match=rf"^{name} is not set.*{'indexed job' if place == 'pod' else place} started"):
        world_of(environment)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("torchrun", "RANK", "8"),
        ("torchrun", "RANK", "-1"),
        ("torchrun", "RANK", "one"),
        ("torchrun", "WORLD_SIZE", "0"),
        ("torchrun", "LOCAL_RANK", "4"),
        ("torchrun", "LOCAL_WORLD_SIZE", "9"),
        ("torchrun", "MASTER_PORT", "65536"),
        ("srun", "SLURM_PROCID", "5"),
        ("srun", "SLURM_LOCALID", "1"),
        ("srun", "SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
        ("srun", "SLURM_STEP_TASKS_PER_NODE", "two"),
        ("srun", "SLURM_STEP_NODELIST", "gpu[02-04"),
        ("srun", "MASTER_PORT", "0"),
        ("pod", "JOB_COMPLETION_INDEX", "4"),
        ("pod", "WORLD_SIZE", "many"),
        ("pod", "LOCAL_WORLD_SIZE", "5"),
    ],
)
def test_wrong_variable_is_named(place: str, name: str, value: str) -> None:
    with pytest.raises(RunError, match=re.escape(f"{name} is '{value}'")):
        world_of({**PLACES[place], name: value})


def test_pods_that_do_not_fit_the_world_are_refused() -> None:
    with pytest.raises(RunError, match="WORLD_SIZE is 4, no multiple of LOCAL_WORLD_SIZE 3"):
        world_of({**POD, "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"})
    with pytest.raises(RunError, match="LOCAL_RANK is not set"):
        world_of({**POD, "LOCAL_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node[01-03,7],other5", "node01"),
        ("node[7,01-03]", "node7"),
        ("other5,node[01-03]", "other5"),
        ("rack[2-3]node[08-11]-ib,x", "rack2node08-ib"),
        ("host-a.example.org", "host-a.example.org"),
        ("10.0.0.[5-9]", "10.0.0.5"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


names = st.from_regex(r"[a-z]([a-z0-9.-]{0,6}[a-z])?", fullmatch=True)
numbers = st.integers(0, 999).flatmap(lambda n: st.integers(1, 5).map(lambda width: f"{n:0{width}}"))
ranges = st.lists(st.tuples(numbers, st.none() | numbers), min_size=1, max_size=3)


@given(names, ranges, st.lists(st.tuples(names, ranges), max_size=3))
def test_first_host_of_any_list(name: str, own: list, others: list) -> None:
    def folded(name: str, ranges: list) -> str:
        return f"{name}[{','.join(low if high is None else f'{low}-{high}' for low, high in ranges)}]"

    nodelist = ",".join(folded(*group) for group in [(name, own), *others])
    assert first_host(nodelist) == name + own[0][0]


@pytest.mark.parametrize("nodelist", ["", ",a", "a[", "a[]", "a]", "a[1,,2]", "a b"])
def test_list_of_hosts_that_is_none_is_refused(nodelist: str) -> None:
    with pytest.raises(RunError, match=r"^SLURM_STEP_NODELIST is .* no list of hosts"):
        first_host(nodelist, "SLURM_STEP_NODELIST")


@given(st.lists(st.integers(1, 16), min_size=1, max_size=12))
def test_tasks_of_each_node(tasks: list[int]) -> None:
    groups: list[list[int]] = []
    for n in tasks:
        if groups and groups[-1][0] == n:
            groups[-1][1] += 1
        else:
            groups.append([n, 1])
    folded = ",".join(f"{n}(x{times})" if times > 1 else str(n) for n, times in groups)
    assert [tasks_on_node(folded, node) for node in range(len(tasks))] == tasks
    with pytest.raises(RunError):
        tasks_on_node(folded, len(tasks))


@given(st.integers(1, 1 << 32), st.integers(0, 1000))
def test_ports_are_apart_and_below_those_of_outgoing_connections(job: int, step: int) -> None:
    port = port_of_step(job, step)
    assert 20000 <= port < 32768
    assert port != port_of_step(job, step + 1)
    assert port != port_of_step(job + 1, step)


def test_place_is_known_without_torch() -> None:
    program = (
        "import sys; from bushcraft.parallel.world import world_of; world_of({}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


@pytest.mark.usefixtures("on_loopback")
def test_world_of_one_joins_and_leaves_twice(free_port: int) -> None:
    import torch.distributed as dist

    for _ in range(2):
        join(World(0, 1, 0, 1, "127.0.0.1", free_port), "cpu", timedelta(seconds=20))
        assert dist.get_world_size() == 1
        assert dist.get_backend() == "gloo"
        leave()
        assert not dist.is_initialized()
    leave()


def test_rank_0_names_those_that_do_not_come(free_port: int) -> None:
    with pytest.raises(RunError, match="of 11 ranks ranks 1, 2, 3, 4, 5, 6, 7, 8 and 2 more did not come"):
        join(World(0, 11, 0, 11, "127.0.0.1", free_port), "cpu", timedelta(seconds=0.3))


@pytest.mark.parametrize("address", ["127.0.0.1", "nowhere.invalid"])
def test_rank_says_that_nobody_is_there(free_port: int, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=f"rank 1 found nobody at {address}:{free_port} \\(.+\\)"):
        join(World(1, 2, 1, 2, address, free_port), "cpu", timedelta(seconds=0.3))
    assert capfd.readouterr() == ("", "")


def test_taken_port_is_named() -> None:
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RunError, match=rf"port {port} is taken .* Set MASTER_PORT"):
            join(World(0, 2, 0, 2, "127.0.0.1", port), "cpu", timedelta(seconds=5))


@pytest.mark.slow
def test_ranks_of_srun_meet_where_rank_0_hosts_the_store(free_port: int) -> None:
    program = """
import os, sys
from datetime import timedelta
from bushcraft.parallel.world import join, leave, world_of
import torch, torch.distributed as dist
torch.set_num_threads(1)
join(world_of(os.environ), "cpu", timedelta(seconds=60))
x = torch.tensor(float(os.environ["SLURM_PROCID"]) + 1)
dist.all_reduce(x)
leave()
sys.exit(int(x.item()))
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                **ALLOCATION,
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_TASKS_PER_NODE": "2",
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_JOB_NODELIST": "localhost",
                "MASTER_PORT": str(free_port),
                "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            },
        )
        for rank in (1, 0)
    ]
    assert [rank.wait(timeout=60) for rank in ranks] == [3, 3]
