"""Small stores and data sets that tests share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bushcraft.data.manifest import DatasetManifest, split_from_packs, write_manifest
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import PackEntry, PackWriter
from bushcraft.store.workspace import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def depot(store: Store) -> LocalDepot:
    return store.depot


def random_documents(seed: int, n_documents: int, max_tokens: int = 3000, vocab: int = 4096) -> Iterator[np.ndarray]:
    """Documents of random tokens, each with the separator 0 in front."""
    rng = np.random.default_rng(seed)
    for length in rng.integers(1, max_tokens, n_documents):
        tokens = rng.integers(1, vocab, length).astype(np.uint16)
        tokens[0] = 0
        yield tokens


def write_pack(depot: LocalDepot, documents: list[np.ndarray], itemsize: int = 2) -> PackEntry:
    writer = PackWriter(depot, itemsize)
    for number, tokens in enumerate(documents):
        writer.add(tokens, f"document-{number}", 4 * len(tokens))
    entry = writer.close()
    assert entry is not None
    return entry


def write_dataset(
    depot: LocalDepot, name: str, packs: list[list[np.ndarray]], heldout: list[np.ndarray]
) -> DatasetManifest:
    """A data set of these documents, without a tokenizer."""
    splits = {
        "train": split_from_packs(depot, [write_pack(depot, documents) for documents in packs]),
        "heldout": split_from_packs(depot, [write_pack(depot, heldout)] if heldout else []),
    }
    manifest = DatasetManifest(name, depot.put_bytes(b"{}"), "no tokenizer", 4096, 0, 2, splits)
    write_manifest(depot, manifest)
    return manifest
