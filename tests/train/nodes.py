"""Runs over ranks of several simulated nodes: each node has a memory of its own, and loses it where a test says.

Each has as many ranks as the others; the nodes share a disk, as on a cluster's file system.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from bushcraft.checkpoint.contents import tensor_objects
from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.parallel.whole_model import whole_tensors
from bushcraft.parallel.world import World, join, leave
from bushcraft.store.local import LocalDepot
from bushcraft.store.memory import MEMORY_VARIABLE, memory_root
from bushcraft.store.workspace import Store
from bushcraft.train import trainer
from bushcraft.train.open_session import open_session
from bushcraft.train.progress import stdout_console
from bushcraft.train.resolve import load_recipe
from bushcraft.train.session import Session
from bushcraft.train.stop import StopRequest
from tests.train.layouts import BATCH, COMMON, PATIENCE, RECIPE, Digests, _digest, _meet

EVERY = 5 * BATCH
"""Sequences from one save to the next."""


@dataclass(frozen=True)
class Crash:
    """At this position, when the newest checkpoint is mirrored everywhere, all ranks are killed."""

    position: int
    unwritable_from: int
    """The store's depot takes no file from this position on."""


@dataclass(frozen=True)
class Found:
    """What a run left, seen by its first rank."""

    events: list[Event]
    opened: Digests
    closed: Digests | None
    said: list[str]


class Cluster:
    """`n` nodes with a store; `memory(node)` is where the node's memory file system lies."""

    def __init__(self, store: Store, name: str, n: int, memories: Path, ranks_per_node: int = 1) -> None:
        self.store, self.name, self.n, self._memories = store, name, n, memories
        self.ranks_per_node = ranks_per_node
        for node in range(n):
            self.memory(node).mkdir(parents=True)

    def memory(self, node: int) -> Path:
        return self._memories / str(node)

    def depot(self, node: int) -> LocalDepot:
        """The node's memory depot of the run."""
        with mock.patch.dict(os.environ, {MEMORY_VARIABLE: str(self.memory(node))}):
            return LocalDepot.open(memory_root(self.store.root, self.name), "memory")

    def lose(self, node: int) -> None:
        """The node is replaced by a fresh one."""
        shutil.rmtree(self.memory(node))
        self.memory(node).mkdir()

    def train(self, crash: Crash | None = None) -> Found:
        """Train, or go on."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bushcraft.train.trainer", "bushcraft.train.open_session"])
        meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        ours, theirs = context.Pipe(duplex=False)
        ranks = []
        per_node = self.ranks_per_node
        for rank in range(self.n * per_node):
            world = World(
                rank, self.n * per_node, rank % per_node, per_node, "127.0.0.1", meeting.port, store_is_hosted=True
            )
            process = context.Process(target=_rank, args=(world, self, crash, theirs), daemon=True)
            process.start()
            ranks.append(process)
        theirs.close()
        messages: list[Any] = []
        try:
            while len(messages) < 3:
                messages.append(ours.recv())
        except EOFError:
            assert messages, "a rank failed before it trained"
        finally:
            for process in ranks:
                process.join(PATIENCE.total_seconds() if messages else 1)
                process.kill()
        assert [process.exitcode for process in ranks] == len(ranks) * [-signal.SIGKILL if crash else 0]
        events = read_ledger(self.store.runs / self.name, self.name)
        opened, said, *closed = messages
        return Found(events, opened, closed[0] if closed else None, said)


def _rank(world: World, cluster: Cluster, crash: Crash | None, end: Connection) -> None:
    os.environ[MEMORY_VARIABLE] = str(cluster.memory(world.rank // cluster.ranks_per_node))
    torch.set_num_threads(1)
    join(world, "cpu", PATIENCE)
    settings = [*COMMON, f"checkpoint.every_sequences={EVERY}", f"run.name={cluster.name}"]
    settings.append(f"parallel.shard={world.world_size}")
    said: list[str] = []
    session = open_session(cluster.store, load_recipe(RECIPE, settings).recipe, said.append, world)
    opened = _digests(session)
    if world.rank == 0:
        end.send(opened)
        end.send(said)
    update = trainer._update

    def update_or_die(*inputs: Any) -> Any:
        if crash and session.position == crash.unwritable_from and world.rank == 0:
            shutil.rmtree(cluster.store.root / "depot" / "incoming")
            (cluster.store.root / "depot" / "incoming").write_bytes(b"")
        if crash and session.position == crash.position:
            until(lambda: _all_mirrored(cluster))
            _meet(session.ranks)
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*inputs)

    with mock.patch.object(trainer, "_update", update_or_die):
        trainer.train(session, stdout_console(quiet=True), StopRequest())
    closed = _digests(session)
    if world.rank == 0:
        end.send(closed)
    session.close(ended_well=True)
    leave()


def _all_mirrored(cluster: Cluster) -> bool:
    """Whether each node has the newest manifest, and what the ranks of the node before it have for it."""
    depots = [cluster.depot(node) for node in range(cluster.n)]
    names = {depot.latest(f"checkpoints/{cluster.name}") for depot in depots}
    if None in names or len(names) > 1:
        return False
    manifest = read_manifest(depots[0], str(names.pop()))
    of_node = [_linked(depot) & set(tensor_objects(manifest)) for depot in depots]
    assert set.union(*of_node) == set(tensor_objects(manifest))
    return all(all(map(depots[node].has, of_node[node - 1])) for node in range(cluster.n))


def _linked(depot: LocalDepot) -> set[str]:
    """The objects that are ranks' own copies."""
    return {name for name, _ in depot.objects() if depot.path(name).stat().st_nlink > 1}


def _digests(session: Session) -> Digests:
    parts = session.parallel.weights.parts()
    parts |= {f"optimizer/{name}": part for name, part in session.optimizer.parts().items()}
    tensors = {name: _digest(tensor) for name, tensor in whole_tensors(parts, session.ranks).items()}
    return Digests(session.position, tensors)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
