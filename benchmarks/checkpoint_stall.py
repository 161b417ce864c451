"""Contenders of `checkpoint.py` that save beside the training: how long a step waits, beside one copy in memory.

A step waits from the call until it may change its weights again. Each save is over before the next contender's turn,
and each contender has saved before it is measured: memory that it keeps for its copies is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from checkpoint_save_load import BUFFERED
from checkpoint_state import empty, take_turns
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import AsyncCheckpointSaverConfig
from torch_checkpointing.staging import CheckpointStagerConfig

from bushcraft.checkpoint.saver import Saver
from bushcraft.checkpoint.saver_process import Written
from bushcraft.parallel.box import Part
from bushcraft.store.workspace import Store

PATIENCE = 600.0
"""Seconds for a save to end."""


@dataclass
class Saving:
    """A save that has begun."""

    finish: Callable[[], object]


def stall_seconds(state: dict[str, Tensor], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds a step waits for each contender, and for a copy of all tensors into memory that is there."""
    empty(folder)
    saving = Saving(lambda: None)
    copy = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    manager = _manager()
    store = Store.create(folder.parent / "stall-store")
    (store.runs / "benchmark").mkdir()  # where the saver keeps its lock
    saver = Saver(store, "benchmark", rank=0, n_snapshots=1)
    parts = {name: Part.whole(tensor) for name, tensor in state.items()}
    saver.prepare(parts)
    number = iter(range(10**6))

    def memcpy() -> None:
        for name, tensor in copy.items():
            tensor.copy_(state[name])

    def ours() -> None:
        saver.begin(parts, previous=None)
        saving.finish = finish_ours

    def finish_ours() -> None:
        outcome = saver.outcome(PATIENCE)
        assert isinstance(outcome, Written)
        assert outcome.failure is None

    def dcp_async() -> None:
        saving.finish = dcp.async_save(state, checkpoint_id=folder / f"dcp-{next(number)}", no_dist=True).result

    def dcp_async_staged() -> None:
        response = dcp.async_save(
            state, checkpoint_id=folder / f"staged-{next(number)}", async_stager=stager, no_dist=True
        )
        saving.finish = response.result

    def torch_checkpointing() -> None:
        write = manager.save(str(folder / f"manager-{next(number)}"), {"state": state})
        with manager.lock():  # as its users guard optimizer.step()
            saving.finish = write.result

    def finish(_: str) -> None:
        saving.finish()
        empty(folder)

    contenders = {
        "memcpy": memcpy,
        "bushcraft": ours,
        "torch DCP async_save": dcp_async,
        "torch DCP async_save, memory kept": dcp_async_staged,
        "torch_checkpointing": torch_checkpointing,
    }
    take_turns(contenders, 1, finish)
    seconds = take_turns(contenders, rounds, finish)
    finish("")
    saver.close()
    saver.release()
    stager.close()
    manager.close()
    return seconds


def _manager() -> CheckpointManager:
    """As its documents configure it where there is no CUDA: nothing is pinned."""
    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False, use_async_staging=True)
    save = AsyncCheckpointSaverConfig(staging_config=staging)
    return CheckpointManager(CheckpointManager.Config(save=save, storage_config=BUFFERED))
