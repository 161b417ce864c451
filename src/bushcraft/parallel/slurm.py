"""What srun tells the tasks that it starts, read without a call to Slurm.

Source: the section "OUTPUT ENVIRONMENT VARIABLES" of srun(1), and slurm.h for the numbers of steps.
"""

import re
from collections.abc import Mapping

from bushcraft.errors import RunError

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Steps from here on are no srun's: the batch script, the shell of salloc, the processes that ssh adopts."""
_FIRST_PORT, _N_PORTS = 20000, 12768
"""Below the ports that Linux gives to outgoing connections (32768 and up)."""
_NODE = re.compile(r"(?:[^,\[\]\s]|\[[^,\[\]\s]+(?:,[^,\[\]\s]+)*\])+")
_RANGES = re.compile(r"\[([^,\-\]]+)[^\]]*\]")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def is_srun_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of its tasks; the scripts and shells of an allocation are none."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def first_host(nodelist: str, name: str = "SLURM_JOB_NODELIST") -> str:
    """The first host of a list such as `node[01-03,7],other5`. Errors: `RunError` names the variable it is from."""
    first = _NODE.match(nodelist)
    if first is None or nodelist[first.end() : first.end() + 1] not in ("", ","):
        raise RunError(f"{name} is {nodelist!r}, which is no list of hosts", "Set MASTER_ADDR to the host of rank 0")
    return _RANGES.sub(r"\1", first.group())


def tasks_on_node(tasks_per_node: str, node: int, name: str = "SLURM_TASKS_PER_NODE") -> int:
    """How many tasks the `node`-th host has, from a list such as `4(x2),3`. Errors: `RunError`."""
    position = 0
    for group in tasks_per_node.split(","):
        match = _TASKS.fullmatch(group)
        if match is None:
            break
        position += int(match.group(2) or 1)
        if node < position:
            return int(match.group(1))
    raise RunError(
        f"{name} is {tasks_per_node!r}, which does not tell how many tasks node {node} has",
        "Start the ranks with srun, which sets it",
    )


def port_of_step(job: int, step: int) -> int:
    """A port that all tasks of a step agree on, and that other steps and jobs on the node seldom share."""
    return _FIRST_PORT + (job + 1009 * step) % _N_PORTS
