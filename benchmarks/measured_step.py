"""One rank of a real step, and what the profiler saw of it: what the dry run is compared with.

    python measured_step.py '{"recipe": …, "layout": …, "settings": …, "rank": …, "meet": FILE}'

Prints one line of JSON. Of the second step: bytes alive at its peak, the parameters and all that torch's CPU
allocator gave since; payloads by collective, from the shapes that the profiler recorded for torch.distributed's
operators; and of a third one the bytes sent by axes, from the operators themselves.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from bushcraft.parallel.batches import microbatch_bounds
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.parallel_model import ParallelModel, Settings
from bushcraft.parallel.simulation.traffic import Traffic, sent_by_axes
from bushcraft.train.dry_run.batches import longest_batch
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import Recipe

STEP, SHAPES = "the measured step", "the step after it, of whose collectives the shapes are read"
CPU = torch.device("cpu")
SIZES = {"float": 4, "double": 8, "c10::BFloat16": 2}
PAYLOADS = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::alltoall_base_": ("all-to-all", 1),
    "c10d::send": ("send", 0),
}
"""How each operator is called, and which of its inputs is the payload."""


def measure(recipe: Recipe, layout: Layout, settings: Settings) -> dict[str, Any]:
    """Start the ranks of a layout on this machine; what the first one measured."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, json.dumps(_asked(recipe, layout, settings, rank, folder))],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(layout.world_size)
        ]
        told = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    found: dict[str, Any] = json.loads(told[0].splitlines()[-1])
    return found


def _asked(recipe: Recipe, layout: Layout, settings: Settings, rank: int, folder: str) -> dict[str, Any]:
    meet = str(Path(folder) / "ranks")
    return {
        "recipe": recipe.to_json(),
        "layout": asdict(layout),
        "settings": asdict(settings),
        "rank": rank,
        "meet": meet,
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    recipe = Recipe.from_json(asked["recipe"])
    layout, settings = Layout(**asked["layout"]), Settings(**asked["settings"])
    torch.set_num_threads(1)
    mesh = None
    if layout.world_size > 1:
        store = dist.FileStore(asked["meet"], layout.world_size)
        dist.init_process_group("gloo", store=store, rank=asked["rank"], world_size=layout.world_size)
        mesh = Mesh(layout, CPU)
    run = recipe.run
    bounds = microbatch_bounds(run.global_batch_size, run.microbatch_size, layout.readers, 0)
    batches = [longest_batch(recipe, bounds[0][1] - bounds[0][0])] * len(bounds)
    model = ParallelModel(recipe.model, mesh, settings, CPU)  # FSDP swaps tensors, which the profiler would hold
    model.weights.initialise(run.seed)
    optimizer = Optimizer(model.weights, recipe.optimizer)
    parameters = sum(weight.held.untyped_storage().nbytes() for weight in model.weights.by_name.values())

    def step() -> None:
        model.gradients(batches, 1e4)
        model.weights.clip(recipe.optimizer.clip_norm)
        optimizer.step(1e-4)
        model.weights.zero_gradients()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as profiler:
        step()
        traffic = Traffic(layout)
        with record_function(STEP), _Collectives(traffic):
            step()
        with record_function(SHAPES):
            step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    found = {"peak": parameters + peak(events), "payloads": payloads(events), "sent": sent_by_axes(traffic.payloads)}
    print(json.dumps(found), flush=True)
    if mesh is not None:
        dist.destroy_process_group()


def peak(events: list[Any]) -> int:
    """Most bytes alive in the measured step, by the allocator's records, of those that were given since they began.

    What gloo's threads free (copies that gloo makes of a collective's input) the records lack: it was freed if its
    address is given again.
    """
    step = _named(events, STEP)
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    alive: dict[int, int] = {}
    now, most = 0, 0
    for event in memory:
        address, n_bytes = event["args"]["Addr"], event["args"]["Bytes"]
        if event["ts"] > step["ts"] + step["dur"]:
            break
        now -= alive.pop(address, 0)
        if n_bytes > 0:
            alive[address] = n_bytes
            now += n_bytes
        if event["ts"] >= step["ts"]:
            most = max(most, now)
    return most


def payloads(events: list[Any]) -> dict[str, int]:
    """Bytes by collective in a step, by the shapes of the operators' inputs."""
    step = _named(events, SHAPES)
    found: Counter[str] = Counter()
    for event in events:
        if event.get("name") in PAYLOADS and step["ts"] <= event["ts"] <= step["ts"] + step["dur"]:
            collective, place = PAYLOADS[event["name"]]
            found[collective] += _bytes(event["args"], place)
    return dict(found)


def _named(events: list[Any], name: str) -> Any:
    return next(event for event in events if event.get("name") == name)


def _bytes(inputs: Any, place: int) -> int:
    dims, kind = inputs["Input Dims"][place], inputs["Input type"][place]
    if kind != "TensorList":
        return int(torch.Size(dims).numel()) * SIZES[kind]
    return sum(int(torch.Size(one).numel()) for one in dims)  # elements: the profiler does not tell a list's type


class _Collectives(TorchDispatchMode):
    """Counts what is sent."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self._traffic.count(func, args)
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
