"""A data set looks like files: its manifest, its tokenizer, and the packs of each split."""

import pytest

from bushcraft.data.manifest import PackTable
from bushcraft.errors import CorruptObjectError
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.blocks import File
from bushcraft.store.outside.tree import Directory, find, tree
from tests.conftest import random_documents, write_dataset


def file_at(depot: LocalDepot, path: str) -> File:
    node = find(tree(depot), path)
    assert isinstance(node, File)
    return node


@pytest.fixture
def packs(depot: LocalDepot) -> list[str]:
    """The object names of two packs of the data set `team/d`."""
    documents = [list(random_documents(seed, 20)) for seed in range(2)]
    manifest = write_dataset(depot, "team/d", documents, [])
    table = PackTable(depot, manifest.splits["train"])
    return [table[i].object for i in range(len(table))]


def test_files_of_a_data_set_are_its_objects(depot: LocalDepot, packs: list[str]) -> None:
    directory, train = find(tree(depot), "datasets/team/d"), find(tree(depot), "datasets/team/d/train")
    assert isinstance(directory, Directory)
    assert list(directory.names()) == ["heldout", "manifest.json", "tokenizer.json", "train"]
    assert isinstance(train, Directory)
    assert list(train.names()) == ["00000000.pack", "00000001.pack"]
    for index, name in enumerate(packs):
        file = file_at(depot, f"datasets/team/d/train/{index:08d}.pack")
        assert file.read(0, file.size) == depot.read(name)
    assert file_at(depot, "datasets/team/d/manifest.json").identity == depot.latest("datasets/team/d")
    assert file_at(depot, "datasets/team/d/tokenizer.json").read(0, 9) == b"{}"


@pytest.mark.parametrize("name", ["00000002.pack", "0.pack", "x", "00000000", "٠٠٠٠٠٠٠٠.pack"])
def test_other_names_are_no_packs(depot: LocalDepot, packs: list[str], name: str) -> None:  # noqa: ARG001
    assert find(tree(depot), f"datasets/team/d/train/{name}") is None


def test_damaged_pack_is_an_error(depot: LocalDepot, packs: list[str]) -> None:
    path = depot.path(packs[1])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptObjectError, match=packs[1]):
        file_at(depot, "datasets/team/d/train/00000001.pack").read(0, 1)
    assert file_at(depot, "datasets/team/d/train/00000000.pack").read(0, 7) == b"BCPACK1"
