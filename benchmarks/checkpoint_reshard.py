"""Contenders of `checkpoint.py` over ranks: four processes save a state that they share, three load it (gloo).

Every tensor is cut along its first dimension, as FSDP2 cuts it (Shard(0) of a DTensor), so that no rank of the second
world holds what a rank of the first one wrote.
"""

import multiprocessing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoint_state import empty, take_turns
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest, write_manifest
from bushcraft.checkpoint.tensors import load_parts, merge_entries, save_parts
from bushcraft.parallel.box import Box, Part
from bushcraft.parallel.rendezvous import host_store
from bushcraft.store.local import LocalDepot

N_SAVING, N_LOADING = 4, 3
REF = "checkpoints/benchmark"


@dataclass(frozen=True)
class Task:
    """What the ranks of a world do."""

    sizes: Mapping[str, tuple[int, ...]]
    folder: Path
    rounds: int
    """Of loading; 0: they save."""


def reshard_seconds(sizes: Mapping[str, tuple[int, ...]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a load at three ranks of what four ranks have saved, until the last rank has all of its part."""
    empty(folder)
    LocalDepot.create(folder / "depot")
    _run_world(N_SAVING, Task(sizes, folder, 0))
    seconds = _run_world(N_LOADING, Task(sizes, folder, rounds))
    empty(folder)
    return seconds


def _run_world(n_ranks: int, task: Task) -> dict[str, list[float]]:
    """What its first rank measured."""
    context = multiprocessing.get_context("spawn")
    store = host_store()
    receive, send = context.Pipe(duplex=False)
    ranks = [context.Process(target=_rank, args=(r, n_ranks, store.port, task, send)) for r in range(n_ranks)]
    for process in ranks:
        process.start()
    found: dict[str, list[float]] = receive.recv()
    for process in ranks:
        process.join()
    assert not any(process.exitcode for process in ranks)
    return found


def _rank(rank: int, n_ranks: int, port: int, task: Task, answer: Connection) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(minutes=5))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks)
    mesh = init_device_mesh("cpu", (n_ranks,))
    parts = {name: _part(shape, rank, n_ranks) for name, shape in task.sizes.items()}
    distributed = {
        name: DTensor.from_local(part.tensor, mesh, [Shard(0)], shape=part.global_shape, stride=_stride(part))
        for name, part in parts.items()
    }
    found = _load(parts, distributed, task) if task.rounds else _save(parts, distributed, task)
    if rank == 0:
        answer.send(found)
    dist.barrier()
    dist.destroy_process_group()


def _save(parts: dict[str, Part], distributed: dict[str, DTensor], task: Task) -> dict[str, list[float]]:
    depot = LocalDepot.open(task.folder / "depot")
    entries: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(entries, save_parts(depot, parts))
    if dist.get_rank() == 0:
        other = depot.put_bytes(b"{}")
        manifest = CheckpointManifest("benchmark", 0, 0, "0" * 64, other, {}, {}, other, {}, merge_entries(entries))
        write_manifest(depot, manifest)
    dcp.save(distributed, checkpoint_id=task.folder / "dcp")
    return {}


def _load(parts: dict[str, Part], distributed: dict[str, DTensor], task: Task) -> dict[str, list[float]]:
    depot = LocalDepot.open(task.folder / "depot")
    wanted = {name: part.tensor.clone() for name, part in parts.items()}

    def ours() -> None:
        manifest = read_manifest(depot, depot.latest(REF) or "")
        load_parts(depot, manifest.tensors, parts)
        dist.barrier()

    def theirs() -> None:
        dcp.load(distributed, checkpoint_id=task.folder / "dcp")
        dist.barrier()

    def spoil(_: str) -> None:
        for part in parts.values():
            part.tensor.zero_()
        dist.barrier()

    contenders = {"bushcraft": ours, "torch DCP": theirs}
    for who, load in contenders.items():
        spoil(who)
        load()
        assert all(part.tensor.equal(wanted[name]) for name, part in parts.items()), f"{who} loads something else"
    return take_turns(contenders, task.rounds, spoil)


def _part(shape: tuple[int, ...], rank: int, n_ranks: int) -> Part:
    """A rank's rows, cut as torch.chunk does: each element is the number of its row."""
    step = -(-shape[0] // n_ranks)
    begin, end = (min(n * step, shape[0]) for n in (rank, rank + 1))
    rows = torch.arange(begin, end, dtype=torch.float32)
    tensor = rows.view(-1, *(1 for _ in shape[1:])).expand(end - begin, *shape[1:]).contiguous()
    return Part(tensor, Box((begin, *(0 for _ in shape[1:])), tuple(tensor.shape)), shape, writes=True)


def _stride(part: Part) -> tuple[int, ...]:
    return Tensor.stride(torch.empty(part.global_shape, device="meta"))
