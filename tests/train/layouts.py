"""Runs of a small model over real ranks: processes that meet by gloo, train, and are killed where a test says.

The processes are forked from one that has torch already, so that a run takes seconds.
"""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor

from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.parallel.ranks import Ranks
from bushcraft.parallel.whole_model import whole_tensors
from bushcraft.parallel.world import World, join, leave
from bushcraft.store.workspace import Store
from bushcraft.train import trainer
from bushcraft.train.open_session import open_session
from bushcraft.train.progress import stdout_console
from bushcraft.train.resolve import load_recipe
from bushcraft.train.stop import StopRequest

STEPS = 20
BATCH = 8
COMMON = (
    f"run.sequences={STEPS * BATCH}",
    f"run.global_batch_size={BATCH}",
    "run.microbatch_size=2",
    "run.sequence_length=48",
    "run.threads=1",
    "run.precision=fp32",
    "model.vocab_size=512",
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=4",
    "model.n_kv_heads=2",
    "model.d_ff=48",
    f"checkpoint.every_sequences={BATCH * STEPS // 2}",
    "checkpoint.asynchronous=false",
    "evaluate.every_sequences=0",
    "evaluate.heldout_bytes=200",
    "evaluate.sample_prompts=[]",
)
MODELS: dict[str, tuple[str, ...]] = {
    "decoder, causal": (),
    "decoder, prefix": ("objective.kind=prefix",),
    "encoder-decoder, UL2": ("model.kind=encoder_decoder", "objective.kind=ul2", "model.vocab_size=640"),
}
LAYOUTS: dict[str, dict[str, int]] = {
    "one rank": {},
    "shard 2": {"shard": 2},
    "shard 4": {"shard": 4},
    "replicate 2 × shard 2": {"replicate": 2, "shard": 2},
    "tensor 2": {"tensor": 2},
    "context 2": {"context": 2},
    "shard 2 × tensor 2": {"shard": 2, "tensor": 2},
    "context 4": {"context": 4},
    "shard 3": {"shard": 3},
    "pipe 2": {"pipe": 2},
    "pipe 2 × shard 2": {"pipe": 2, "shard": 2},
}
"""Context 4 is wider than the two key/value heads; shard 3 does not divide the batch of 8."""
RECIPE = "smoke"
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class Digests:
    """Of every tensor of the weights and the optimizer, put together from all ranks."""

    position: int
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """What a run left."""

    events: list[Event]
    opened: Digests
    """As the run began or went on."""
    closed: Digests | None
    """At its end; None where it was killed."""

    @property
    def losses(self) -> dict[int, float]:
        """By position."""
        return {e.position: e.data["loss"] for e in self.events if e.type == "step"}

    @property
    def receipts(self) -> dict[int, str]:
        return {e.position: e.data["receipt"] for e in self.events if e.type == "step"}


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """The largest relative difference of the losses at the positions of `one`."""
    return max(abs(loss - other[position]) / abs(other[position]) for position, loss in one.items())


def cannot(model: str, layout: str) -> bool:
    """Whether the layout is refused with the model: there are no pipelines of encoder-decoders."""
    return model.startswith("encoder") and layout.startswith("pipe")


def n_ranks(layout: Mapping[str, int]) -> int:
    n = 1
    for axis, size in layout.items():
        n *= 1 if axis == "stages_per_rank" else size
    return n


def run(
    root: Path, name: str, settings: tuple[str, ...], layout: Mapping[str, int], kill_at_step: int | None = None
) -> Found:
    """Train, or go on, in as many processes as the layout has ranks; kill them before that step is applied."""
    chosen = [*COMMON, *settings, *(f"parallel.{axis}={size}" for axis, size in layout.items()), f"run.name={name}"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bushcraft.train.trainer", "bushcraft.train.open_session"])
    n = n_ranks(layout)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks, ends = [], []
    for rank in range(n):
        world = World(rank, n, rank, n, "127.0.0.1", store.port, store_is_hosted=True)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(world, root, chosen, kill_at_step, theirs), daemon=True)
        process.start()
        theirs.close()
        ranks.append(process)
        ends.append(ours)
    try:
        found = _results(ends[0])
        for process in ranks:
            process.join(PATIENCE.total_seconds())
            wanted = -signal.SIGKILL if kill_at_step else 0
            assert process.exitcode == wanted, f"a rank ended with {process.exitcode}"
    finally:
        for process in ranks:
            process.kill()
    return replace(found, events=read_ledger(root / "runs" / name, name))


def _results(end: Connection) -> Found:
    """The first rank sends its digests as it begins, and as it ends; a killed one closes the pipe."""
    messages: list[Digests] = []
    try:
        while len(messages) < 2:
            messages.append(end.recv())
    except EOFError:
        assert messages, "a rank failed before it trained"
    return Found([], messages[0], messages[1] if len(messages) > 1 else None)


def _rank(world: World, root: Path, settings: list[str], kill_at_step: int | None, end: Connection) -> None:
    alone = world.world_size == 1
    torch.set_num_threads(1)
    if not alone:
        join(world, "cpu", PATIENCE)
    session = open_session(Store.open(root), load_recipe(RECIPE, settings).recipe, _nothing, None if alone else world)

    def digests() -> None:
        parts = session.parallel.weights.parts()
        parts |= {f"optimizer/{name}": part for name, part in session.optimizer.parts().items()}
        found = {name: _digest(tensor) for name, tensor in whole_tensors(parts, session.ranks).items()}
        if session.ranks.is_first:
            end.send(Digests(session.position, found))

    update = trainer._update

    def update_or_die(*inputs: Any) -> Any:
        if session.step + 1 == kill_at_step:
            _meet(session.ranks)
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*inputs)

    digests()
    with mock.patch.object(trainer, "_update", update_or_die):
        trainer.train(session, stdout_console(quiet=True), StopRequest())
    digests()
    session.close(ended_well=True)
    leave()


def _meet(ranks: Ranks) -> None:
    """So that no rank hears of another's end before its own."""
    ranks.gathered(None)


def _digest(tensor: Tensor) -> str:
    return blake3(tensor.contiguous().numpy().tobytes()).hexdigest()


def _nothing(_: str) -> None:
    """Nobody listens."""
