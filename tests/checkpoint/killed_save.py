"""Saves that are killed: a process with everything imported forks a child, which saves until a seeded moment ends it.

A life ends by SIGKILL before its n-th operation on the file system (open for writing, write, fsync, rename, link,
mkdir, unlink, the creation of a reference), by SIGKILL at any moment by the clock, or by a loss of power at the n-th
operation (`lost_power.py`). The next life goes on in the store that was left, and is ended as well.
"""

import itertools
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from bushcraft.checkpoint import save_parts as sizes
from bushcraft.checkpoint.manifest import CheckpointManifest, write_manifest
from bushcraft.checkpoint.newest import newest
from bushcraft.checkpoint.tensors import load_tensor, merge_entries, save_parts
from bushcraft.errors import BushcraftError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import Depot
from bushcraft.store.depots import Depots
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, StoreSettings
from tests.checkpoint.lost_power import SyncedDisk, Unlucky, lose_power

RUN = "r"
SAVES = 2
"""Of a life that nothing ends."""
LIVES = 4
"""In one store."""
OBJECT_BYTES, CHUNK_BYTES = 128, 32
Ending = Literal["operation", "clock", "power"]


@dataclass(frozen=True)
class Trial:
    """A life, and what was found after it."""

    ending: Ending
    before: str
    """The operation that did not come; empty if the clock ended it, or nothing."""
    durable: int
    """The last checkpoint of which the saver had returned, in this life or before."""
    begun: int
    """The last one that was begun, which may have been published just before the end."""
    found: int = 0
    """The one that would be loaded; 0 is none."""
    passed_over: int = 0
    """Newer ones that were published and are not whole."""
    right: bool = True
    """Whether every tensor of the found one has the bits that were saved."""

    @property
    def newest_durable(self) -> bool:
        """Whether nothing durable was lost, and nothing published is not whole."""
        return self.durable <= self.found <= self.begun and not self.passed_over


@dataclass(frozen=True)
class Setup:
    """What is saved to: directories as depots."""

    depots: tuple[str, ...]
    copies: int = 1

    def create(self, root: Path) -> Depot:
        members = [LocalDepot.create(root / name, name) for name in self.depots]
        if len(members) == 1:
            return members[0]
        urls = tuple(DepotSettings(name=name, url=str(root / name)) for name in self.depots)
        return Depots(members, StoreSettings(copies=self.copies, depots=urls), root)

    def exists(self, root: Path) -> bool:
        return all((root / name / "depot.json").exists() for name in self.depots)


LOCAL = Setup(("a",))
TWO_COPIES = Setup(("a", "b"), copies=2)
ONE_FOLLOWS = Setup(("a", "b"))
"""The second gets everything later, in the background."""


def trials(n: int, seed: int, setup: Setup, root: Path, endings: tuple[Ending, ...]) -> Iterator[Trial]:
    """`n` lives, of which `LIVES` follow each other in one store below `root`."""
    rng = random.Random(seed)
    operations, seconds = _whole_life(setup, root / "whole")
    for number in range(n):
        if number % LIVES == 0:
            store = root / f"store-{number}"
            store.mkdir()
            disk, durable, found = SyncedDisk.of(store), 0, 0
        ending = rng.choice(endings)
        at = rng.randint(1, operations)
        within = rng.uniform(0, seconds) if ending == "clock" else None
        followed = disk if "power" in endings else None
        life = _Life(setup, store, found + 1, at if within is None else 0, within, followed)
        n_saved = life.run()
        durable = found + n_saved if n_saved else durable
        if followed:
            disk = SyncedDisk.read(life.dump)
        if ending == "power":
            lose_power(store, disk, rng)
            disk = SyncedDisk.of(store)
        trial = _found(Trial(ending, life.before, durable, found + n_saved + 1), setup, store)
        yield trial
        found, durable = trial.found, min(durable, trial.found)


def losses_after_kills(setup: Setup, root: Path) -> Iterator[Trial]:
    """For each operation: a life killed before it, then one that saves all; then what was not synced is lost."""
    operations, _ = _whole_life(setup, root / "whole")
    for at in range(1, operations + 1):
        store = root / f"store-{at}"
        store.mkdir()
        killed = _Life(setup, store, 1, at, None, SyncedDisk.of(store))
        n_saved = killed.run()
        whole = _Life(setup, store, n_saved + 1, 0, None, SyncedDisk.read(killed.dump))
        n_saved += whole.run()
        lose_power(store, SyncedDisk.read(whole.dump), Unlucky())
        yield _found(Trial("power", killed.before, n_saved, n_saved), setup, store)


def expected(number: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint; one of them never changes, and so is stored once."""
    return {
        "frozen": torch.arange(32.0),
        "model/a": torch.arange(24.0).reshape(8, 3) + 1000 * number,
        "model/b": torch.arange(50).bfloat16() - number,
        "scalar": torch.tensor(number),
    }


def save(depot: Depot, number: int) -> None:
    """A checkpoint of two ranks, in several objects of several chunks."""
    tensors = expected(number)
    halves: list[dict[str, Part]] = [{}, {}]
    for name, tensor in tensors.items():
        whole = Box.whole(tuple(tensor.shape))
        cut = tensor.shape[0] // 2 if name.startswith("model/") else None
        if cut is None:
            halves[0][name] = Part.whole(tensor)
            continue
        for half, begin, end in ((halves[0], 0, cut), (halves[1], cut, tensor.shape[0])):
            box = Box((begin, *whole.offset[1:]), (end - begin, *whole.shape[1:]))
            half[name] = Part(tensor[begin:end], box, whole.shape, writes=True)
    entries = merge_entries([save_parts(depot, half) for half in halves])
    ledger, code = depot.put_bytes(b"ledger %d" % number), depot.put_bytes(b"code")
    write_manifest(depot, CheckpointManifest(RUN, number, number, "0" * 64, ledger, {}, {}, code, {}, entries))


def _whole_life(setup: Setup, root: Path) -> tuple[int, float]:
    """How many operations a life has that nothing ends, and how long it is."""
    root.mkdir()
    life, began = _Life(setup, root, 1, 0, None, None), time.monotonic()
    assert life.run() == SAVES
    return life.operations, time.monotonic() - began


def _found(trial: Trial, setup: Setup, root: Path) -> Trial:
    """With what a run would go on from."""
    passed: list[str] = []
    if not setup.exists(root):
        return trial
    depot = setup.create(root)
    try:
        found = newest(depot, RUN, lambda name, _: passed.append(name))
    except BushcraftError:
        found = None
    if isinstance(depot, Depots):
        depot.background.wait()
    if found is None:
        return replace(trial, passed_over=len(passed))
    manifest = found[1]
    right = all(_has_bits(depot, manifest, name, tensor) for name, tensor in expected(manifest.position).items())
    return replace(trial, found=manifest.position, passed_over=len(passed), right=right)


def _has_bits(depot: Depot, manifest: CheckpointManifest, name: str, tensor: Tensor) -> bool:
    into = torch.empty_like(tensor)
    load_tensor(depot, name, manifest.tensors[name], into)
    return torch.equal(into, tensor)


@dataclass
class _Life:
    setup: Setup
    root: Path
    first: int
    """The number of its first checkpoint."""
    at: int
    """The operation before which it ends; 0 is never."""
    seconds: float | None
    """After so long it is killed from outside."""
    disk: SyncedDisk | None
    """What is durable when it begins, if that is to be followed."""
    operations: int = 0
    """That it has done, if nothing ended it."""
    before: str = ""
    """The operation that ended it."""

    @property
    def dump(self) -> Path:
        """Where it leaves what is durable at its end."""
        return self.root.with_name(f"{self.root.name}-disk")

    def run(self) -> int:
        """Live in a child; of how many checkpoints the saver has returned."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                self._live(write)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(write)
        descriptor = os.pidfd_open(child)
        if self.seconds is not None:
            select.select([descriptor], [], [], self.seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), "a save has failed"
        with os.fdopen(read, "rb") as pipe:
            told = pipe.read().decode().split("\n")
        os.close(descriptor)
        for line in told:
            kind, _, value = line.partition(" ")
            self.operations = int(value) if kind == "done" else self.operations
            self.before = value if kind == "before" else self.before
        return told.count("saved")

    def _live(self, pipe: int) -> None:
        tell = partial(os.write, pipe)
        operations = _Operations(self.at, self.disk, self.dump, tell)
        with (
            operations.followed(),
            mock.patch.object(sizes, "OBJECT_BYTES", OBJECT_BYTES),
            mock.patch.object(sizes, "CHUNK_BYTES", CHUNK_BYTES),
        ):
            depot = self.setup.create(self.root)
            depot.remove_abandoned_files()
            for number in range(self.first, self.first + SAVES):
                save(depot, number)
                tell(b"saved\n")
            if isinstance(depot, Depots):
                depot.background.wait()
            if self.disk:
                operations.end()
        tell(b"done %d\n" % operations.done)
        os._exit(0)


class _Operations:
    """Counts a process's operations on the file system, notes what is synced, and ends it before one of them."""

    def __init__(self, at: int, disk: SyncedDisk | None, dump: Path, tell: Callable[[bytes], int]) -> None:
        self.done = 0
        self._counter = itertools.count(1)
        self._at, self._disk, self._dump, self._tell = at, disk, dump, tell
        self._lock = threading.RLock()
        self._dying = False

    def end(self) -> None:
        """By SIGKILL; other threads come no further than their next operation."""
        with self._lock:
            self._dying = True
            if self._disk:
                self._disk.write(self._dump)
            os.kill(os.getpid(), signal.SIGKILL)

    def one_comes(self, what: str) -> None:
        with self._lock:
            if self._dying:
                return
            self.done = next(self._counter)
            if self.done == self._at:
                self._tell(b"before %s\n" % what.encode())
                self.end()

    def followed(self) -> Any:
        """Follow what this process does, until it ends."""
        if self._disk:
            self._disk.forget_removed(self._dump.with_name(self._dump.name.removesuffix("-disk")))
        sys.addaudithook(self._audited)
        stack = mock.patch.multiple(
            os,
            **{name: self._before(getattr(os, name)) for name in ("write", "pwrite", "writev", "pwritev")},
            fsync=self._fsync(os.fsync),
        )
        IncomingFile.write = self._before(IncomingFile.write)  # type: ignore[method-assign]
        return stack

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.one_comes("reference" if "/refs/" in str(arguments[0]) else "open")
        elif event in {"os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"}:
            self.one_comes(event.removeprefix("os."))

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.one_comes("write")
            return function(*arguments, **named)

        return call

    def _fsync(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            self.one_comes("fsync")
            fsync(descriptor)
            if self._disk:
                self._disk.synced(descriptor)

        return call
