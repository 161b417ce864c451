"""What goes on behind reads and writes: depots that are late catch up, bad copies are mended."""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError
from bushcraft.store.depot import Depot
from bushcraft.store.lag import Lag, Late
from bushcraft.store.mend import copy_object, mend

REPAIRS = "repairs.jsonl"
"""STORE/repairs.jsonl: one line for each copy that was mended after a read had noticed it."""


class Background:
    """One thread at a time, begun when there is work; it ends with the process, and the journals keep what is left."""

    def __init__(self, members: Sequence[Depot], lags: Mapping[str, Lag], staging: Depot, root: Path) -> None:
        self._members, self._lags, self._staging, self._root = members, lags, staging, root
        self._lock = threading.Lock()
        self._bad: dict[tuple[str, str], str] = {}
        """(object, depot) → what was wrong, to be mended."""
        self._given_up: set[tuple[str, str]] = set()
        self._follow = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def mend(self, name: str, failures: Sequence[tuple[Depot, StoreError]]) -> None:
        """A good copy was found elsewhere: mend those that were bad or missing."""
        self._start_after_fork()
        for depot, error in failures:
            if isinstance(error, CorruptObjectError | MissingObjectError):
                with self._lock:
                    if (name, depot.name) not in self._given_up:
                        self._bad[name, depot.name] = error.message
                self._begin()

    def follow(self) -> None:
        """Something was noted as late."""
        if any(self._lags.values()):
            self._follow = True
            self._begin()

    def wait(self, seconds: float | None = None) -> None:
        """Until there is no more work, or so long."""
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(seconds)

    def catch_up(self, member: Depot, limit: float = float("inf")) -> int:
        """Bring a depot what it lacks, in order, for `limit` seconds at most; how many entries that were.

        Errors: `StoreError`: the depot cannot be written, or no depot has what it needs.
        """
        lag, began, n_done = self._lags[member.name], time.monotonic(), 0
        if not lag:
            return 0
        with lag.worker() as ours:
            if not ours:
                raise StoreError(f"depot {member.name} is catching up in another process", "Wait for it")
            position = None
            try:
                for position_after, late in lag.entries():
                    self._deliver(member, late)
                    position, n_done = position_after, n_done + 1
                    if time.monotonic() - began > limit:
                        break
            finally:
                if position is not None:
                    lag.done(position)
        return n_done

    def _deliver(self, member: Depot, late: Late) -> None:
        if late.ref is not None:
            member.add_ref(late.ref, late.number, late.object)
            return
        if member.holds(late.object, late.size):
            return
        failure: StoreError | None = None
        for source in self._members:
            if source is member:
                continue
            try:
                copy_object(late.object, source, member, self._staging)
            except StoreError as error:
                failure = error
            else:
                return
        if failure is not None:
            raise failure

    def _begin(self) -> None:
        self._start_after_fork()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="depots", daemon=True)
                self._thread.start()

    def _start_after_fork(self) -> None:
        """A fork has not its parent's threads, and its lock may be held by one of them for ever."""
        if self._pid != os.getpid():
            self._pid, self._thread, self._lock = os.getpid(), None, threading.Lock()

    def _work(self) -> None:
        while True:
            with self._lock:
                following, self._follow = self._follow, False
                bad, self._bad = self._bad, {}
                if not following and not bad:
                    self._thread = None
                    return
            for (name, depot), why in bad.items():
                self._mend(name, depot, why)
            if following:
                for member in self._members:
                    self._try_to_catch_up(member)

    def _mend(self, name: str, depot: str, why: str) -> None:
        target = next(member for member in self._members if member.name == depot)
        try:
            source = mend(name, target, self._members, self._staging)
        except StoreError:
            source = None
        if source is None:
            self._given_up.add((name, depot))
        elif source is not target:
            self._note(name, depot, source.name, why)

    def _note(self, name: str, depot: str, source: str, why: str) -> None:
        line = {"time": time.time(), "object": name, "depot": depot, "from": source, "why": why}
        try:
            with (self._root / REPAIRS).open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:
            return  # a full disk: the copy is mended all the same

    def _try_to_catch_up(self, member: Depot) -> None:
        try:
            self.catch_up(member)
        except StoreError:
            return  # it stays in the journal, whose age `store status` shows
