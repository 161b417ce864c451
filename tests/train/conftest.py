"""A small store of real text that training tests share."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bushcraft.data.manifest import DatasetManifest, split_from_packs, write_manifest
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.pack import PackWriter
from bushcraft.store.workspace import Store
from bushcraft.train.open_session import open_session
from bushcraft.train.resolve import load_recipe
from bushcraft.train.session import Session

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


@contextmanager
def tiny_session(store: Store, name: str, *settings: str) -> Iterator[Session]:
    """A run of `TINY_MODEL` in this process, whose memory and threads stay as they are."""
    recipe = load_recipe("smoke", [*TINY_MODEL, *settings, f"run.name={name}"]).recipe
    threads = torch.get_num_threads()
    with mock.patch("bushcraft.train.open_session.keep_freed_memory"):
        session = open_session(store, recipe, lambda _: None)
    try:
        yield session
    finally:
        session.ledger.close()
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the data sets `python` and `other`; runs must have names of their own."""
    store = Store.create(tmp_path_factory.mktemp("text") / "store")
    texts = dict(_texts())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts.values(),
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    names = sorted(texts)
    parts = {"python": names[3:20], "other": names[20:]}
    for dataset, train in parts.items():
        splits = {}
        for split, chosen in (("train", train), ("heldout", names[:3])):
            writer = PackWriter(store.depot, 2)
            for name in chosen:
                ids = [0, *tokenizer.encode(texts[name]).ids]
                writer.add(np.array(ids, np.uint16), name, len(texts[name].encode()))
            entry = writer.close()
            assert entry is not None
            splits[split] = split_from_packs(store.depot, [entry])
        root = store.depot.put_bytes(tokenizer.to_str().encode())
        write_manifest(store.depot, DatasetManifest(dataset, root, "bpe-512", 512, 0, 2, splits))
    return store


@pytest.fixture(scope="session")
def reference(text_store: Store) -> str:
    """An uninterrupted run of `TINY_MODEL`."""
    done = train(text_store, "reference")
    assert done.returncode == 0, done.stderr
    return "reference"


def _texts() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-h]*.py")):
        text = path.read_text()
        if 2000 < len(text) < 20_000:
            yield path.name, text
