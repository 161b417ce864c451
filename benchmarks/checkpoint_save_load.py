"""Contenders of `checkpoint.py` in one process: durable saves to a local disk, and loads into tensors that exist."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.distributed.checkpoint as dcp
from checkpoint_state import empty, forget, n_bytes, take_turns
from safetensors.torch import save_file
from torch import Tensor
from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import SyncCheckpointSaverConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest, write_manifest
from bushcraft.checkpoint.tensors import load_parts, save_tensors
from bushcraft.parallel.box import Part
from bushcraft.store.local import LocalDepot

WRITE_BYTES = 1 << 30
"""A raw write; Linux writes at most 2 GiB at a time."""
BUFFERED = LocalFileSystemStorageConfig(use_direct_io=False)
"""torch_checkpointing writes with O_DIRECT unless it is told not to, and its lengths are not aligned: ext4 refuses."""
Seconds = dict[str, list[float]]


def save_seconds(state: dict[str, Tensor], folder: Path, rounds: int) -> Seconds:
    """Each contender's durable saves of the whole state."""
    raw = _in_one_piece(state)
    contenders: dict[str, Callable[[], None]] = {
        "raw write + fsync": lambda: _write_raw(folder / "raw", raw, 0),
        "raw O_DIRECT write + fsync": lambda: _write_raw(folder / "raw", raw, os.O_DIRECT),
        "bushcraft": lambda: _save_ours(folder / "depot", state),
        "torch DCP": lambda: _save_dcp(folder / "dcp", state, 1),
        "torch DCP, 2 threads": lambda: _save_dcp(folder / "dcp", state, 2),
        "safetensors + fsync, no hashes": lambda: _save_safetensors(folder / "file.safetensors", state),
    }
    seconds = take_turns(contenders, rounds, before=lambda _: empty(folder))
    empty(folder)
    return seconds


def load_seconds(state: dict[str, Tensor], folder: Path, rounds: int) -> tuple[Seconds, Seconds]:
    """Each contender's loads: from the kernel's copies of the files, and from the disk. All of them are compared."""
    empty(folder)
    depot = LocalDepot.create(folder / "depot")
    name = _save_ours(folder / "depot", state)
    _save_dcp(folder / "dcp", state, 1)
    manager = CheckpointManager(CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=BUFFERED))
    manager.save(str(folder / "torch_checkpointing"), {"state": state})
    into = {key: tensor.clone() for key, tensor in state.items()}
    contenders: dict[str, Callable[[], None]] = {
        "bushcraft": lambda: _load_ours(depot, name, into),
        "torch DCP": lambda: dcp.load(into, checkpoint_id=folder / "dcp", no_dist=True),
        "torch_checkpointing": lambda: _load_torch_checkpointing(manager, folder / "torch_checkpointing", into),
    }

    def spoil(_: str) -> None:
        for tensor in into.values():
            tensor.zero_()

    def spoil_and_forget(who: str) -> None:
        spoil(who)
        forget(folder)

    for who, load in contenders.items():
        spoil(who)
        load()
        assert all(into[key].equal(tensor) for key, tensor in state.items()), f"{who} loads something else"
    warm = take_turns(contenders, rounds, spoil)
    cold = take_turns(contenders, rounds, spoil_and_forget)
    manager.close()
    empty(folder)
    return warm, cold


def _in_one_piece(state: dict[str, Tensor]) -> memoryview:
    """The state's bytes where direct writes can read them: on whole pages."""
    memory = mmap.mmap(-1, -n_bytes(state) // mmap.PAGESIZE * -mmap.PAGESIZE)
    np.frombuffer(memory, np.uint8)[: n_bytes(state)] = np.concatenate(
        [tensor.view(-1).numpy().view(np.uint8) for tensor in state.values()]
    )
    return memoryview(memory)


def _write_raw(path: Path, data: memoryview, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    while data:
        data = data[os.write(descriptor, data[:WRITE_BYTES]) :]
    os.fsync(descriptor)
    os.close(descriptor)


def _save_ours(root: Path, state: dict[str, Tensor]) -> str:
    """Object name of the manifest, which is published: all that a checkpoint is."""
    depot = LocalDepot.create(root)
    entries = save_tensors(depot, state)
    ledger = depot.put_bytes(b"{}")
    manifest = CheckpointManifest("benchmark", 0, 0, "0" * 64, ledger, {}, {}, ledger, {}, entries)
    return write_manifest(depot, manifest)


def _load_ours(depot: LocalDepot, name: str, into: dict[str, Tensor]) -> None:
    load_parts(depot, read_manifest(depot, name).tensors, {key: Part.whole(tensor) for key, tensor in into.items()})


def _save_dcp(folder: Path, state: dict[str, Tensor], n_threads: int) -> None:
    """It syncs its files by default."""
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=n_threads), no_dist=True)


def _load_torch_checkpointing(manager: CheckpointManager, folder: Path, into: dict[str, Tensor]) -> None:
    """It gives back tensors that are mapped from the file where it may; a training run needs them in its own."""
    found = manager.load(str(folder), into={"state": into})["state"]
    for key, tensor in into.items():
        if found[key] is not tensor:
            tensor.copy_(found[key])


def _save_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
