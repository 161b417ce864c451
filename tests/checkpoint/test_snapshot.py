"""A snapshot's files become objects as they are: what is loaded from them is what was copied."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.checkpoint import placement, save_parts
from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.checkpoint.objects import WrittenFile, assemble, known_chunks, write_files
from bushcraft.checkpoint.placement import ALIGNMENT, file_sizes, place
from bushcraft.checkpoint.snapshot import Snapshot
from bushcraft.checkpoint.tensors import load_parts
from bushcraft.errors import StoreError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot

SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_parts, "CHUNK_BYTES", 40)
    monkeypatch.setattr(placement, "OBJECT_BYTES", 300)


def parts_of(tensors: dict[str, Tensor]) -> dict[str, Part]:
    return {name: Part.whole(tensor) for name, tensor in tensors.items()}


def save(
    depot: LocalDepot, snapshot: Snapshot, tensors: dict[str, Tensor], previous: dict[str, TensorEntry] | None = None
) -> list[WrittenFile]:
    parts = parts_of(tensors)
    blocks = place(parts)
    snapshot.prepare(blocks)
    snapshot.take(parts, blocks)
    pieces = [piece for block in blocks for piece in block.pieces]
    return write_files(depot, snapshot.paths, pieces, known_chunks(previous or {}))


def entries_of(tensors: dict[str, Tensor]) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), ())
        for name, tensor in tensors.items()
    }


def loaded(depot: LocalDepot, entries: dict[str, TensorEntry], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_parts(depot, entries, parts_of(into))
    return into


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(shapes=SHAPES, dtype=DTYPES, seed=st.integers(0, 10))
def test_what_was_copied_is_what_is_loaded(
    depot: LocalDepot, tmp_path: Path, shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    tensors = {f"t{i}": torch.randint(0, 100, shape).to(dtype) for i, shape in enumerate(shapes)}
    files = save(depot, Snapshot(tmp_path / "slot"), tensors)
    for whole in (False, True):
        found = loaded(depot, assemble(entries_of(tensors), files, whole), tensors)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_strided_parts_of_a_rank_are_copied_row_by_row(depot: LocalDepot, tmp_path: Path) -> None:
    whole = torch.arange(60.0).view(6, 10)
    part = Part(whole[:, 3:7], Box((0, 3), (6, 4)), (6, 10), writes=True)
    blocks = place({"w": part})
    snapshot = Snapshot(tmp_path / "slot")
    snapshot.prepare(blocks)
    snapshot.take({"w": part}, blocks)
    files = write_files(depot, snapshot.paths, [piece for block in blocks for piece in block.pieces], {})
    entries = assemble({"w": TensorEntry((6, 10), "float32", ())}, files)
    into = Part(torch.zeros(6, 4), part.box, (6, 10), writes=False)
    load_parts(depot, entries, {"w": into})
    assert torch.equal(into.tensor, whole[:, 3:7])


def test_tensors_begin_aligned_and_files_are_bounded() -> None:
    blocks = place(parts_of({f"t{i}": torch.zeros(7, 3) for i in range(10)}))
    assert all(block.begin % ALIGNMENT == 0 for block in blocks)
    assert all(size < 300 + ALIGNMENT + 40 for size in file_sizes(blocks))
    assert len(file_sizes(blocks)) > 1


def test_an_object_is_the_file_itself_where_all_is_new(depot: LocalDepot, tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "slot")
    files = save(depot, snapshot, {f"t{i}": torch.full((7, 3), float(i)) for i in range(10)})
    for file, path in zip(files, snapshot.paths, strict=True):
        assert file.whole == object_name(path.read_bytes())
        assert file.chunks == file.whole_chunks


def test_what_did_not_change_is_not_written_again(depot: LocalDepot, tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "slot")
    tensors = {f"t{i}": torch.full((7, 3), float(i)) for i in range(10)}
    before = assemble(entries_of(tensors), save(depot, snapshot, tensors))
    tensors["t4"] += 1
    files = save(depot, snapshot, tensors, before)
    after = assemble(entries_of(tensors), files)
    assert {name for name in tensors if after[name].chunks != before[name].chunks} == {"t4"}
    new = {chunk.object for chunk in after["t4"].chunks}
    assert sum(depot.size(name) for name in new) == 7 * 3 * 4
    assert torch.equal(loaded(depot, after, tensors)["t4"], tensors["t4"])
    whole = {file.whole for file in files}
    assert whole == {object_name(path.read_bytes()) for path in snapshot.paths}


def test_what_could_not_be_written_is_told_with_where_it_is_in_memory(
    depot: LocalDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> str:
        raise StoreError("the disk is full")

    monkeypatch.setattr(depot, "put_file", refused)
    snapshot = Snapshot(tmp_path / "slot")
    files = save(depot, snapshot, {"a": torch.ones(5)})
    assert [str(file.failure) for file in files] == ["the disk is full"]
    assert files[0].whole == object_name(snapshot.paths[0].read_bytes())


def test_memory_is_used_again_and_given_back(tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "slot")
    blocks = place(parts_of({"a": torch.ones(5)}))
    snapshot.prepare(blocks)
    inode = snapshot.paths[0].stat().st_ino
    snapshot.prepare(blocks)
    assert snapshot.paths[0].stat().st_ino == inode
    snapshot.prepare(place(parts_of({"a": torch.ones(50)})))
    snapshot.release()
    assert list((tmp_path / "slot").iterdir()) == []


def test_where_the_memory_file_system_is_too_small_the_memory_has_no_name(
    depot: LocalDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slot").write_bytes(b"")  # no directory can be made there
    snapshot = Snapshot(tmp_path / "slot" / "0")
    tensors = {f"t{i}": torch.full((7, 3), float(i)) for i in range(10)}
    files = save(depot, snapshot, tensors)
    found = loaded(depot, assemble(entries_of(tensors), files), tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    snapshot.release()
    assert snapshot.paths == []
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10}))
    with pytest.raises(StoreError, match="cannot reserve memory in"):
        save(depot, snapshot, tensors)
