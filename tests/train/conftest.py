"""A small store of real text that training tests share."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.workspace import Store
from bushcraft.train.open_session import open_session
from bushcraft.train.resolve import load_recipe
from bushcraft.train.session import Session
from tests.train.small_store import small_store

TINY_MODEL = (
    "run.sequences=96",
    "run.threads=1",
    "model.vocab_size=512",
    "model.n_layers=2",
    "checkpoint.every_sequences=24",
    "evaluate.every_sequences=48",
    "evaluate.heldout_bytes=2000",
)
"""The smoke recipe, made smaller still."""
STOPPED_RUN = Path(__file__).with_name("stopped_run.py")


def arguments(store: Store, name: str, *settings: str) -> list[str]:
    """Of the command that trains `TINY_MODEL`."""
    chosen = [*TINY_MODEL, *settings, f"run.name={name}"]
    return ["train", "smoke", "--store", str(store.root), *(part for s in chosen for part in ("--set", s))]


def train(store: Store, name: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "bushcraft.cli", *arguments(store, name, *settings)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def train_and_stop(store: Store, name: str, function: str, call: int, *settings: str) -> tuple[str, int]:
    """What the run told when it got a SIGINT at that call of the function, and how many calls came after it."""
    command = [sys.executable, str(STOPPED_RUN), function, str(call), *arguments(store, name, *settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr)


def events_of(store: Store, name: str) -> list[Event]:
    return read_ledger(store.runs / name, name)


def session_of(store: Store, name: str, *settings: str) -> Session:
    """A run of `TINY_MODEL`, to be closed."""
    recipe = load_recipe("smoke", [*TINY_MODEL, *settings, f"run.name={name}"]).recipe
    with mock.patch("bushcraft.train.open_session.keep_freed_memory"):
        return open_session(store, recipe, lambda _: None)


@contextmanager
def tiny_session(store: Store, name: str, *settings: str) -> Iterator[Session]:
    """A run of `TINY_MODEL` in this process, whose memory and threads stay as they are."""
    threads = torch.get_num_threads()
    session = session_of(store, name, *settings)
    try:
        yield session
    finally:
        session.close(ended_well=True)
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the data sets `python` and `other`; runs must have names of their own."""
    return small_store(tmp_path_factory.mktemp("text") / "store")


@pytest.fixture(scope="session")
def reference(text_store: Store) -> str:
    """An uninterrupted run of `TINY_MODEL`."""
    done = train(text_store, "reference")
    assert done.returncode == 0, done.stderr
    return "reference"
