"""Disks that fill up, become read-only or die, and copies that are damaged: reads stay right, saves say why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest, write_manifest
from bushcraft.checkpoint.newest import newest
from bushcraft.checkpoint.tensors import load_tensor, save_tensors
from bushcraft.errors import BushcraftError, StoreError
from bushcraft.store.depot import Depot, ref_path
from bushcraft.store.depots import Depots
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import PackReader
from bushcraft.store.settings import DepotSettings, StoreSettings
from tests.conftest import random_documents, write_pack
from tests.store.real_disks import disk, needs_root

REF = "checkpoints/r"
MIB = 2**20


def save(depot: Depot, number: int) -> str:
    """A checkpoint of one MiB that says its number."""
    entries = save_tensors(depot, {"model/a": torch.full((MIB // 4,), float(number))})
    ledger, code = depot.put_bytes(b"ledger"), depot.put_bytes(b"code")
    manifest = CheckpointManifest("r", number, number, "0" * 64, ledger, {}, {}, code, {}, entries)
    return write_manifest(depot, manifest)


def save_until_refused(depot: Depot, number: int) -> tuple[int, str]:
    """The number of the checkpoint that could not be saved, and why."""
    while True:
        try:
            save(depot, number)
        except StoreError as error:
            return number, str(error)
        number += 1


def loaded(depot: Depot) -> tuple[int, list[str]]:
    """The number of the checkpoint that a run would go on from, and what is said of those that were passed over."""
    said: list[str] = []
    found = newest(depot, "r", lambda _, error: said.append(str(error)))
    assert found is not None
    into = torch.empty(MIB // 4)
    load_tensor(depot, "model/a", found[1].tensors["model/a"], into)
    assert into.eq(found[1].position).all()
    return found[1].position, said


def two_copies(one: Path, other: Path) -> Depots:
    members = [LocalDepot.create(one, "a"), LocalDepot.create(other, "b")]
    urls = tuple(DepotSettings(name=member.name, url=str(member.root)) for member in members)
    return Depots(members, StoreSettings(copies=2, depots=urls), other.parent)


@needs_root
def test_a_full_disk_is_said_and_the_same_save_goes_on_when_there_is_space(tmp_path: Path) -> None:
    with disk(tmp_path) as small:
        depot = LocalDepot.create(small.root / "depot")
        ballast = small.root / "ballast"
        ballast.write_bytes(bytes(2 * MIB))
        number, refused = save_until_refused(depot, 1)
        assert "No space left on device. Free some space" in refused
        assert "\n" not in refused
        assert number > 2
        assert loaded(depot) == (number - 1, [])
        ballast.unlink()
        save(depot, number)
        assert loaded(depot) == (number, [])
        assert list((depot.root / "incoming").iterdir()) == []


@needs_root
def test_a_disk_that_becomes_read_only_before_the_manifest_is_said_and_the_last_checkpoint_stands(
    tmp_path: Path,
) -> None:
    with disk(tmp_path) as small:
        depot = LocalDepot.create(small.root / "depot")
        save(depot, 1)
        entries = save_tensors(depot, {"model/a": torch.zeros(5)})
        small.remount("ro")
        manifest = CheckpointManifest("r", 2, 2, "0" * 64, "", {}, {}, "", {}, entries)
        with pytest.raises(StoreError, match=r"Read-only file system\. Choose a --store on a file system that can be"):
            write_manifest(depot, manifest)
        assert loaded(depot) == (1, [])
        small.remount("rw")
        save(depot, 2)
        assert loaded(depot) == (2, [])


@needs_root
@pytest.mark.parametrize("n_writes", [1, 2, 3, 4])
def test_a_disk_that_dies_in_a_save_is_said_and_gives_the_last_checkpoint_after_a_restart(
    tmp_path: Path, n_writes: int
) -> None:
    """The journal in memory is lost with it: only what was synced comes back."""
    with disk(tmp_path) as small:
        depot = LocalDepot.create(small.root / "depot")
        save(depot, 1)
        write, left = IncomingFile.write, [n_writes]

        def deadly(self: IncomingFile, data: bytes | memoryview) -> None:
            left[0] -= 1
            if left[0] == 0:
                small.die()
            write(self, data)

        with mock.patch.object(IncomingFile, "write", deadly):
            number, refused = save_until_refused(depot, 2)
        assert "Input/output error. The disk fails: move the store to another one" in refused
        last = number - 1
        small.come_back()
        depot = LocalDepot.open(small.root / "depot")
        depot.remove_abandoned_files()
        assert loaded(depot) == (last, [])
        save(depot, last + 1)
        assert loaded(depot) == (last + 1, [])


@needs_root
def test_reads_go_to_the_other_depot_when_the_disk_of_the_first_dies(tmp_path: Path) -> None:
    with disk(tmp_path) as small:
        depot = two_copies(small.root / "depot", tmp_path / "b")
        save(depot, 1)
        small.die()
        assert loaded(depot) == (1, [])
        with pytest.raises(StoreError, match="Input/output error"):
            save(depot, 2)
        depot.background.wait()


def _flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"flipped": _flip, "truncated": _truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("part", ["object", "manifest", "code"])
def test_without_another_copy_the_older_checkpoint_serves_with_one_line_that_says_so(
    tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    depot = LocalDepot.create(tmp_path / "a")
    save(depot, 1)
    newer = save(depot, 2)
    if part == "code":  # which both have
        newer = write_manifest(depot, _with_code(read_manifest(depot, newer), depot.put_bytes(b"newer code")))
    damage(depot.path(_part(depot, newer, part)))
    number, said = loaded(depot)
    assert number == (2 if part == "code" else 1)
    assert len(said) == 1
    assert f"; the checkpoint of position {number} is whole" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("part", ["object", "manifest", "code"])
def test_another_depot_serves_and_the_damaged_copy_is_mended(
    tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    depot = two_copies(tmp_path / "a", tmp_path / "b")
    name = _part(depot, save(depot, 1), part)
    first = depot.members[0]
    assert isinstance(first, LocalDepot)
    damage(first.path(name))
    assert loaded(depot) == (1, [])
    depot.background.wait()
    first.verify(name)


@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_depot_that_is_gone_with_all_it_had_costs_nothing_durable(tmp_path: Path, lost: str) -> None:
    depot = two_copies(tmp_path / "a", tmp_path / "b")
    save(depot, 1)
    shutil.rmtree(tmp_path / lost)
    depot = two_copies(tmp_path / "a", tmp_path / "b")
    assert loaded(depot) == (1, [])
    save(depot, 2)
    assert loaded(depot) == (2, [])
    depot.background.wait()


def test_a_reference_that_is_gone_from_one_depot_is_read_in_the_other(tmp_path: Path) -> None:
    depot = two_copies(tmp_path / "a", tmp_path / "b")
    save(depot, 1)
    shutil.rmtree(tmp_path / "a" / ref_path(REF))
    assert loaded(depot) == (1, [])


def test_a_reference_whose_name_was_damaged_is_none_and_the_older_serves(tmp_path: Path) -> None:
    depot = LocalDepot.create(tmp_path / "a")
    save(depot, 1)
    save(depot, 2)
    value = max((tmp_path / "a" / ref_path(REF)).iterdir())
    value.rename(value.with_name(value.name[:-1] + "?"))
    assert loaded(depot) == (1, [])


def test_a_flipped_footer_of_a_pack_is_refused_or_read_in_the_other_depot(tmp_path: Path) -> None:
    documents = list(random_documents(0, 20))
    depot = two_copies(tmp_path / "a", tmp_path / "b")
    first = depot.members[0]
    assert isinstance(first, LocalDepot)
    entry = write_pack(depot, documents)  # type: ignore[arg-type]
    _flip(first.path(entry.object), -20)
    with pytest.raises(BushcraftError):
        PackReader(first, entry)
    read = [tokens for _, tokens, _ in PackReader(depot, entry).documents()]
    assert all(np.array_equal(one, other) for one, other in zip(read, documents, strict=True))
    depot.background.wait()


def _part(depot: Depot, manifest: str, part: str) -> str:
    if part == "manifest":
        return manifest
    found = read_manifest(depot, manifest)
    return found.code if part == "code" else found.tensors["model/a"].chunks[0].object


def _with_code(manifest: CheckpointManifest, code: str) -> CheckpointManifest:
    return CheckpointManifest(**{**vars(manifest), "code": code})
