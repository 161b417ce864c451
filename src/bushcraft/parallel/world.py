"""Who this process is among the ranks of a run, and how the ranks meet.

torchrun, Slurm's srun, Kubernetes' indexed jobs and our own `launch` each tell a process its rank by other
variables; all of them become a `World`. torch is imported by `join` only: who asks `world_of` may still set what
torch reads when it is imported, such as the number of threads.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from bushcraft.errors import RunError
from bushcraft.parallel.slurm import first_host, is_srun_task, port_of_step, tasks_on_node

_DEFAULT_PORT = 29500
"""torch's own default for MASTER_PORT; each pod has all ports for itself."""
_MAX_RANKS = 1 << 24


@dataclass(frozen=True)
class World:
    """One rank's place among all ranks, and where they meet."""

    rank: int
    """This process among all, from 0."""
    world_size: int
    """The number of ranks on all machines."""
    local_rank: int
    """This process among those of its machine, from 0."""
    local_world_size: int
    """The number of ranks on this machine."""
    address: str
    """The host of the store through which the ranks meet."""
    port: int
    """The store's TCP port."""
    store_is_hosted: bool = False
    """Whether who started the ranks hosts the store; else rank 0 does."""


def world_of(environment: Mapping[str, str]) -> World | None:
    """This process's place by what started it; None where nobody started ranks.

    Errors: `RunError` that names the variable which is missing or wrong.
    """
    in_pod = "JOB_COMPLETION_INDEX" in environment
    if "RANK" in environment or ("LOCAL_RANK" in environment and not in_pod):
        return _torchrun_world(_Variables(environment, "torchrun"))
    if is_srun_task(environment):
        return _srun_world(_Variables(environment, "srun"))
    if in_pod and "WORLD_SIZE" in environment:
        return _pod_world(_Variables(environment, "a Kubernetes indexed job"))
    return None


@dataclass(frozen=True)
class _Variables:
    """The environment as `starter` should have set it."""

    environment: Mapping[str, str]
    starter: str

    def name(self, *names: str) -> str:
        """The first of `names` that is set."""
        for name in names:
            if self.environment.get(name):
                return name
        raise RunError(
            f"{' or '.join(names)} is not set, though this process looks like a rank that {self.starter} started",
            f"Set {names[0]}, or unset the other variables of {self.starter} to train in one process",
        )

    def text(self, *names: str) -> str:
        return self.environment[self.name(*names)]

    def integer(self, *names: str, low: int = 0, high: int = _MAX_RANKS) -> int:
        name = self.name(*names)
        text = self.environment[name]
        if not (text.isdecimal() and low <= int(text) <= high):
            raise RunError(f"{name} is {text!r}", f"It must be an integer from {low} to {high}")
        return int(text)

    def integer_or(self, default: int, *names: str, low: int = 0, high: int = _MAX_RANKS) -> int:
        is_set = any(self.environment.get(name) for name in names)
        return self.integer(*names, low=low, high=high) if is_set else default

    def port_or(self, default: int) -> int:
        return self.integer_or(default, "MASTER_PORT", low=1, high=65535)


def _torchrun_world(variables: _Variables) -> World:
    world_size = variables.integer("WORLD_SIZE", low=1)
    local_world_size = variables.integer("LOCAL_WORLD_SIZE", low=1, high=world_size)
    return World(
        rank=variables.integer("RANK", high=world_size - 1),
        world_size=world_size,
        local_rank=variables.integer("LOCAL_RANK", high=local_world_size - 1),
        local_world_size=local_world_size,
        address=variables.text("MASTER_ADDR"),
        port=variables.integer("MASTER_PORT", low=1, high=65535),
        store_is_hosted=variables.environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _srun_world(variables: _Variables) -> World | None:
    # SLURM_NTASKS may be the allocation's; a step of one task is a shell or a program that starts its own ranks.
    world_size = variables.integer("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", low=1)
    if world_size == 1:
        return None
    tasks = variables.name("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    local_world_size = tasks_on_node(variables.text(tasks), variables.integer("SLURM_NODEID"), tasks)
    job, step = variables.integer("SLURM_JOB_ID", high=1 << 32), variables.integer("SLURM_STEP_ID", high=1 << 32)
    return World(
        rank=variables.integer("SLURM_PROCID", high=world_size - 1),
        world_size=world_size,
        local_rank=variables.integer("SLURM_LOCALID", high=local_world_size - 1),
        local_world_size=local_world_size,
        address=variables.environment.get("MASTER_ADDR") or _srun_address(variables),
        port=variables.port_or(port_of_step(job, step)),
    )


def _srun_address(variables: _Variables) -> str:
    """The host of task 0, which is the first of the step unless the user distributes the tasks as he likes."""
    if variables.environment.get("SLURM_DISTRIBUTION") == "arbitrary":
        raise RunError(
            "SLURM_DISTRIBUTION is 'arbitrary', which does not tell on which host rank 0 is",
            "Set MASTER_ADDR to the host of rank 0, or start the ranks with another --distribution",
        )
    nodes = variables.name("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    return first_host(variables.text(nodes), nodes)


def _pod_world(variables: _Variables) -> World:
    """Pods of one rank, or of `LOCAL_WORLD_SIZE` ranks which something in the pod started with a `LOCAL_RANK` each.

    Source: kubernetes.io, "Indexed Job for Parallel Processing" and "Job with Pod-to-Pod Communication": the host
    of pod 0 is JOB-0.SERVICE by the headless service.
    """
    world_size = variables.integer("WORLD_SIZE", low=1)
    local_world_size = variables.integer_or(1, "LOCAL_WORLD_SIZE", low=1, high=world_size)
    if world_size % local_world_size:
        raise RunError(
            f"WORLD_SIZE is {world_size}, no multiple of LOCAL_WORLD_SIZE {local_world_size}",
            "Set WORLD_SIZE to the number of pods times the ranks of a pod",
        )
    local_rank = 0 if local_world_size == 1 else variables.integer("LOCAL_RANK", high=local_world_size - 1)
    pod = variables.integer("JOB_COMPLETION_INDEX", high=world_size // local_world_size - 1)
    return World(
        rank=pod * local_world_size + local_rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        address=variables.text("MASTER_ADDR"),
        port=variables.port_or(_DEFAULT_PORT),
    )


def join(world: World, device_type: Literal["cpu", "cuda"], timeout: timedelta) -> None:
    """Meet the other ranks and make the default process group: gloo, and NCCL for tensors on CUDA.

    `timeout` is how long a rank waits for the others, here and in each collective. Errors: `RunError` where they do
    not come in that time. The CUDA device of this rank is the caller's to set before.
    """
    import torch.distributed as dist

    from bushcraft.parallel.rendezvous import meet

    deadline = time.monotonic() + timeout.total_seconds()
    try:
        dist.init_process_group(
            "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl",
            store=meet(world, deadline),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timeout,
        )
    except RuntimeError as error:  # torch.distributed has no narrower class for a peer that went away
        raise RunError(
            f"rank {world.rank} cannot join the others at {world.address}:{world.port}: {_first_line(error)}",
            "Look for the first rank that failed: the others end because of it",
        ) from error


def leave() -> None:
    """Give up the process group that `join` made, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
