"""Saves go on beside the steps; one that fails is said and does not end the run before its time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from bushcraft.checkpoint.newest import checkpoints, verify
from bushcraft.checkpoint.saver import LOCK, wait_for_saves
from bushcraft.errors import CheckpointError, RunError
from bushcraft.store.memory import memory_root
from bushcraft.store.workspace import Store
from bushcraft.train import trainer
from bushcraft.train.progress import stdout_console
from bushcraft.train.session import Session
from bushcraft.train.stop import StopRequest
from bushcraft.train.summary import summarise
from tests.train import layouts
from tests.train.conftest import events_of, session_of, tiny_session


def train(session: Session, before_step: Callable[[int], None]) -> None:
    """Train to the end; `before_step` is called with the position of each step."""
    update = trainer._update

    def hooked(held: Session, *inputs: object) -> object:
        before_step(held.position)
        return update(held, *inputs)  # type: ignore[arg-type]

    with mock.patch.object(trainer, "_update", hooked):
        trainer.train(session, stdout_console(quiet=True), StopRequest())


class Unwritable:
    """A depot that takes no file between two positions: a file lies where its directory was."""

    def __init__(self, store: Store, begin: int, end: int = 1000) -> None:
        self._incoming = store.root / "depot" / "incoming"
        self._begin, self._end = begin, end

    def __call__(self, position: int) -> None:
        if position == self._begin:
            self._incoming.rmdir()
            self._incoming.write_bytes(b"")
        if position == self._end:
            self.mend()

    def __enter__(self) -> "Unwritable":
        return self

    def __exit__(self, *_: object) -> None:
        if self._incoming.is_file():
            self.mend()

    def mend(self) -> None:
        self._incoming.unlink()
        self._incoming.mkdir()


@pytest.mark.slow
def test_a_save_that_fails_is_said_and_the_next_one_is_durable(text_store: Store) -> None:
    at_once = "checkpoint.asynchronous=false"  # else it may be writable again before the saver begins
    with Unwritable(text_store, 16, 40) as fails, tiny_session(text_store, "fails-once", at_once) as session:
        train(session, fails)
    events = [event for event in events_of(text_store, "fails-once") if event.type == "checkpoint"]
    assert [(event.position, "failed" in event.data) for event in events] == [
        (24, True),
        (48, False),
        (72, False),
        (96, False),
    ]
    assert "incoming" in events[0].data["failed"]
    assert summarise(text_store.runs, "fails-once").checkpoint == events[-1].data["manifest"]
    for _, name in checkpoints(text_store.depot, "fails-once"):
        verify(text_store.depot, name)


class CrashError(Exception):
    """A rank that dies."""


@pytest.mark.slow
def test_a_run_goes_on_from_memory_where_the_disk_took_nothing(text_store: Store) -> None:
    def crash(position: int) -> None:
        fails(position)
        if position == 64:
            raise CrashError

    session = session_of(text_store, "in-memory", "checkpoint.asynchronous=false")
    with Unwritable(text_store, 16) as fails, pytest.raises(CrashError):
        train(session, crash)
    session.close(ended_well=False)
    assert checkpoints(text_store.depot, "in-memory") == []
    with tiny_session(text_store, "in-memory") as again:
        assert again.position == 48
        assert again.checkpoint is None, "it is not durable"
        train(again, lambda _: None)
    newest = checkpoints(text_store.depot, "in-memory")[0][1]
    assert verify(text_store.depot, newest)[0].position == 96
    assert not {e.position for e in events_of(text_store, "in-memory") if e.type == "step" and e.generation} & {32, 48}


@pytest.mark.slow
def test_a_saver_that_is_killed_costs_its_save_and_no_other(text_store: Store) -> None:
    with tiny_session(text_store, "saver-killed", "checkpoint.asynchronous=false") as session:

        def kill(position: int) -> None:
            if position == 16:
                process = session.saving._saver._process
                assert process is not None
                os.kill(process.pid, signal.SIGKILL)
                process.wait()

        train(session, kill)
    events = [event for event in events_of(text_store, "saver-killed") if event.type == "checkpoint"]
    assert [event.position for event in events if "failed" not in event.data][-1] == 96
    assert len(checkpoints(text_store.depot, "saver-killed")) >= 3


@pytest.mark.slow
def test_a_run_whose_saves_fail_for_too_long_says_so(text_store: Store) -> None:
    with (
        Unwritable(text_store, 16) as fails,
        tiny_session(text_store, "too-old", "checkpoint.max_age_minutes=0.0001") as session,
        pytest.raises(CheckpointError, match=r"no checkpoint became durable for 0\.0001 minutes"),
    ):
        train(session, fails)


@pytest.mark.slow
def test_a_run_that_ends_well_gives_its_memory_back(text_store: Store) -> None:
    with tiny_session(text_store, "gives-back") as session:
        train(session, lambda _: None)
        assert list(memory_root(text_store.root, "gives-back").rglob("slots/*/*"))
    assert not memory_root(text_store.root, "gives-back").exists()


@pytest.mark.slow
def test_ranks_save_beside_their_steps_and_publish_together(text_store: Store) -> None:
    settings = ("checkpoint.asynchronous=true", "run.sequences=96", "checkpoint.every_sequences=24")
    assert layouts.run(text_store.root, "ranks-aside", settings, {"shard": 2}).events[-1].type == "finished"
    saved = checkpoints(text_store.depot, "ranks-aside")
    assert verify(text_store.depot, saved[0][1])[0].position == 96
    assert len(saved) >= 3


def test_a_start_waits_for_the_save_that_a_killed_trainer_has_left(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(RunError, match="has not ended"):
            wait_for_saves(tmp_path, lambda _: None, seconds=0.1)
    wait_for_saves(tmp_path, lambda _: None, seconds=0.1)
