"""A run's ledger on disk: appended line by line, sealed into the depot in segments.

The live file is STORE/runs/NAME/ledger.jsonl. Sealing stores the lines since the last seal as one object,
and a root object that names all segments: {"format", "version", "run", "events", "segments": [{object,
events}]}. A checkpoint names such a root, so a run's history survives the loss of the machine that wrote it.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

from bushcraft.errors import RunError, StoreError
from bushcraft.ledger.events import VERSION, Event, EventType
from bushcraft.ledger.phases import PhaseClock
from bushcraft.store.depot import Depot, object_name
from bushcraft.store.durable import machine_errors, make_directory, write_atomically

LOCK_SECONDS = 0.5
_RESTORE = "Move this run's directory away: the same command restores the ledger from the newest checkpoint"


@dataclass(frozen=True)
class Sealed:
    """The objects of a seal, the root last."""

    root: str
    objects: tuple[bytes, ...]
    segments: tuple[dict[str, Any], ...]
    n_lines: int
    """How many lines that had not been sealed are in it."""


class Ledger:
    """The ledger of one run, held for writing by one process; `Ledger.open` takes the lock."""

    def __init__(self, path: Path, run: str, depot: Depot, lock: BufferedWriter, history: list[Event]) -> None:
        self.run = run
        self.depot = depot
        self.history = history
        """The events of the generations before this one."""
        self.clock = PhaseClock()
        self.generation = 1 + max((event.generation for event in history), default=-1)
        self._path = path
        self._lock = lock
        self._node = socket.gethostname()
        self._segments = _read_seals(path.with_name("seals.json"))
        self._n_events = len(history)
        sealed = sum(segment["events"] for segment in self._segments)
        if sealed > len(history):
            raise StoreError(f"{path} has lost lines: {len(history)} of {sealed}", _RESTORE)
        self._unsealed = [event.to_line() for event in history[sealed:]]
        with machine_errors("write", path):
            self._file = path.open("ab")

    @classmethod
    def open(cls, directory: Path, run: str, depot: Depot, restore: Callable[[], None] = lambda: None) -> "Ledger":
        """The ledger in `directory`, new or continued; a torn last line of a killed process is dropped.

        Where there is none, `restore` may write it, with the lock held. Errors: `RunError` if another process writes
        it; `StoreError` if a line in it is damaged.
        """
        path = directory / "ledger.jsonl"
        with machine_errors("write", directory):
            make_directory(directory)
            lock = _lock(directory / "lock", run)
            for abandoned in directory.glob(".*.tmp"):  # of `write_atomically` in a process that was killed
                abandoned.unlink()
        try:
            with machine_errors("read", path):
                if not path.exists():
                    restore()
                events = _drop_torn_line(path) if path.exists() else []
            return cls(path, run, depot, lock, events)
        except BaseException:
            lock.close()
            raise

    def append(self, type_: EventType, position: int, durable: bool = False, **data: Any) -> Event:
        """Write one event; `durable` waits until it is on the disk (a kill never loses more than a torn line)."""
        event = Event(
            type=type_,
            sequence=self._n_events,
            wall=time.time(),
            mono=time.monotonic(),
            generation=self.generation,
            node=self._node,
            rank=0,
            position=position,
            phases=self.clock.take(),
            data=data,
        )
        line = event.to_line()
        with machine_errors("write", self._path):
            self._file.write(line)
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())
        self._unsealed.append(line)
        self._n_events += 1
        return event

    def seal(self) -> str:
        """Store all lines since the last seal; the object name of the root over all segments."""
        sealed = self.sealed()
        for data in sealed.objects:
            self.depot.put_bytes(data)
        self.confirm(sealed)
        return sealed.root

    def sealed(self) -> "Sealed":
        """What `seal` would store, for somebody else to store; `confirm` it afterwards."""
        segments = list(self._segments)
        objects = []
        if self._unsealed:
            with machine_errors("write", self._path):
                os.fsync(self._file.fileno())
            objects.append(b"".join(self._unsealed))
            segments.append({"object": object_name(objects[0]), "events": len(self._unsealed)})
        root = {
            "format": "bushcraft-ledger",
            "version": VERSION,
            "run": self.run,
            "events": self._n_events,
            "segments": segments,
        }
        objects.append(json.dumps(root, sort_keys=True).encode())
        return Sealed(object_name(objects[-1]), tuple(objects), tuple(segments), len(self._unsealed))

    def confirm(self, sealed: "Sealed") -> None:
        """These objects are durable: the next seal begins behind them. Errors: `StoreError`."""
        self._segments = list(sealed.segments)
        del self._unsealed[: sealed.n_lines]
        write_atomically(self._path.with_name("seals.json"), json.dumps(self._segments).encode())

    def close(self) -> None:
        """Make the file durable and let another process have the run."""
        with machine_errors("write", self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._lock.close()


def read_ledger(directory: Path, run: str) -> list[Event]:
    """The events of a run that may still be going on (an unfinished last line is left out).

    Errors: `RunError` if there is no such run; `StoreError` if a line is damaged.
    """
    path = directory / "ledger.jsonl"
    with machine_errors("read", path):
        if not path.exists():
            raise RunError(f"there is no run {run!r} in {directory.parent}", "`bushcraft run list` shows the runs")
        return list(_parse(path.read_bytes(), path))


def restore_ledger(directory: Path, depot: Depot, root: str) -> None:
    """Write the live ledger again from the sealed segments that `root` names (the run's directory was lost)."""
    document = json.loads(depot.read(root))
    lines = b"".join(depot.read(segment["object"]) for segment in document["segments"])
    write_atomically(directory / "seals.json", json.dumps(document["segments"]).encode())
    write_atomically(directory / "ledger.jsonl", lines)


def _lock(path: Path, run: str) -> BufferedWriter:
    """The open file `path`, locked. Errors: `RunError` if another process has it, and keeps it.

    Who only asks whether the run is going on (`bushcraft run list`) has it for a moment.
    """
    file = path.open("ab")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise RunError(
                    f"run {run!r} is being trained by another process",
                    "Wait for it, stop it, or train under another name by --set run.name=NAME",
                ) from None
            time.sleep(LOCK_SECONDS / 20)


def _parse(data: bytes, path: Path) -> Iterator[Event]:
    for number, line in enumerate(data.splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            return
        try:
            event = Event.from_line(line)
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{path} line {number + 1} is damaged: {error}",
                _RESTORE,
            ) from None
        if event.sequence != number:
            raise StoreError(f"{path} line {number + 1} is event {event.sequence}: lines are missing", _RESTORE)
        yield event


def _drop_torn_line(path: Path) -> list[Event]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    events = list(_parse(whole, path))
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    return events


def _read_seals(path: Path) -> list[dict[str, Any]]:
    with machine_errors("read", path):
        return json.loads(path.read_bytes()) if path.exists() else []
