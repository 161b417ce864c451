"""Parts that any ranks wrote are read by any other ranks: every bit, and little more than what they hold."""

import math
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.checkpoint import save_parts as saving
from bushcraft.checkpoint.manifest import TensorEntry
from bushcraft.checkpoint.tensors import (
    load_part,
    load_parts,
    load_tensor,
    merge_entries,
    save_parts,
    save_tensors,
    verify_tensors,
)
from bushcraft.errors import CheckpointError, CorruptObjectError, StoreError
from bushcraft.parallel.box import Box, Part
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.local import LocalDepot
from tests.checkpoint.layouts import CountingDepot, filled, layouts, ranks_of, save_by_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)


def damage(depot: LocalDepot, name: str, at: int) -> None:
    path = depot.path(name)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@given(layouts(), st.sampled_from(DTYPES), st.integers(1, 3), st.integers(1, 200), st.integers(1, 300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_one_layout_wrote_any_other_reads_bit_for_bit(
    depot: LocalDepot,
    layout: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    n_copies: int,
    chunk_bytes: int,
    object_bytes: int,
) -> None:
    shape, grid, other_grid = layout
    tensor = filled(shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(saving, "OBJECT_BYTES", object_bytes)
        entry = save_by_ranks(depot, "t", ranks_of(tensor, grid, n_copies))
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    assert all(chunk.end - chunk.begin <= max(chunk_bytes, row_bytes) for chunk in entry.chunks)
    assert [chunk.offset for chunk in entry.chunks] == sorted(chunk.offset for chunk in entry.chunks)
    read = torch.zeros_like(tensor)
    for part in ranks_of(read, other_grid):
        load_part(depot, "t", entry, part)  # its tensor is a strided view of `read`
    assert torch.equal(read, tensor)


def test_every_bit_pattern_of_a_number_comes_back(depot: LocalDepot) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)  # quiet and signalling NaNs, infinities, both zeros
    tensor = bits.view(torch.bfloat16).reshape(256, 256)
    entry = save_by_ranks(depot, "t", ranks_of(tensor, (3, 2)))
    read = torch.empty_like(tensor)
    load_tensor(depot, "t", entry, read)
    assert torch.equal(read.view(torch.int16), tensor.view(torch.int16))


def test_a_part_that_lies_strided_in_memory_is_written_row_major(depot: LocalDepot) -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    entry = save_by_ranks(depot, "t", [Part.whole(tensor.t())])
    read = torch.zeros(3, 4)
    load_tensor(depot, "t", entry, read.t())
    assert torch.equal(read, tensor)
    assert depot.read(entry.chunks[0].object) == tensor.t().contiguous().numpy().tobytes()


def test_a_rank_reads_little_more_than_what_it_holds(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHUNK_BYTES", 4096)
    tensor = torch.arange(1024 * 64.0).reshape(1024, 64)  # chunks of 16 rows
    entry = save_by_ranks(depot, "t", [Part.whole(tensor)])
    counting = CountingDepot(depot.root)
    rows = torch.empty(100, 64)
    load_part(counting, "t", entry, Part(rows, Box((333, 0), (100, 64)), (1024, 64), writes=True))
    assert torch.equal(rows, tensor[333:433])
    assert 100 * 256 <= counting.n_read <= 100 * 256 + 2 * 4096


def test_ranks_of_the_layout_that_was_saved_read_what_they_hold_and_no_more(depot: LocalDepot) -> None:
    tensor = torch.arange(64 * 6.0).reshape(64, 6)
    entry = save_by_ranks(depot, "t", ranks_of(tensor, (3, 2)))
    for part in ranks_of(torch.empty_like(tensor), (3, 2)):
        counting = CountingDepot(depot.root)
        load_part(counting, "t", entry, part)
        assert counting.n_read == part.box.numel * 4


def test_a_rank_that_writes_nothing_makes_no_object_and_still_names_its_tensors(depot: LocalDepot) -> None:
    copy = Part(torch.ones(2, 2), Box.whole((2, 2)), (2, 2), writes=False)
    nothing = Part(torch.ones(0, 2), Box((2, 0), (0, 2)), (2, 2), writes=True)
    entries = save_parts(depot, {"copy": copy, "nothing": nothing})
    assert entries == dict.fromkeys(("copy", "nothing"), TensorEntry((2, 2), "float32", ()))
    assert list((depot.root / "objects").rglob("*")) == []


def test_tensors_share_objects_and_large_ones_are_cut(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHUNK_BYTES", 64)
    monkeypatch.setattr(saving, "OBJECT_BYTES", 200)
    entries = save_tensors(depot, {"a": torch.arange(64.0).reshape(16, 4), "b": torch.ones(3), "c": torch.ones(2)})
    assert [len(entry.chunks) for entry in entries.values()] == [4, 1, 1]
    assert len({chunk.object for entry in entries.values() for chunk in entry.chunks}) == 2
    assert verify_tensors(depot, entries) == 256 + 12 + 8


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_save_that_cannot_be_published_fails_and_leaves_no_file(
    depot: LocalDepot, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(saving, "OBJECT_BYTES", 1)
    n_published = 0
    lock = threading.Lock()

    def put_file(depot: LocalDepot, new: IncomingFile) -> str:
        nonlocal n_published
        with lock:
            n_published += 1
            fails = n_published == failing + 1
        if fails:
            raise StoreError("no space left")
        return put(depot, new)

    put = LocalDepot.put_file
    monkeypatch.setattr(LocalDepot, "put_file", put_file)
    with pytest.raises(StoreError, match="no space left"):
        save_tensors(depot, {name: torch.ones(4) for name in "abcd"})
    assert list((depot.root / "incoming").iterdir()) == []
    assert n_published <= failing + saving.WRITERS  # none was begun after it


def test_chunks_that_do_not_cover_a_tensor_once_are_refused_by_its_name(depot: LocalDepot) -> None:
    good = Part.whole(torch.ones(4, 4))
    left, right, low = (
        Part(torch.ones(4, 2), Box((0, 0), (4, 2)), (4, 4), writes=True),
        Part(torch.ones(4, 2), Box((0, 2), (4, 2)), (4, 4), writes=True),
        Part(torch.ones(1, 4), Box((3, 0), (1, 4)), (4, 4), writes=True),
    )

    def merged(*of_b: Part) -> dict[str, TensorEntry]:
        ranks = [save_parts(depot, {"b": part}) for part in of_b]
        return merge_entries([save_parts(depot, {"a": good}), *ranks, save_parts(depot, {"c": good})])

    assert list(merged(right, left)) == ["a", "b", "c"]
    with pytest.raises(CheckpointError, match="tensor b: no rank wrote 8 of its 16 elements"):
        merged(right)
    with pytest.raises(CheckpointError, match="tensor b was written twice"):
        merged(left, right, low)
    with pytest.raises(CheckpointError, match="tensor b was written twice"):
        merged(left, left)  # as many elements as there are
    with pytest.raises(CheckpointError, match="tensor s was written twice"):
        merge_entries([save_parts(depot, {"s": Part.whole(torch.ones(()))})] * 2)


@given(layouts(), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_grid_without_one_of_its_boxes_is_refused(
    depot: LocalDepot, layout: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    shape, grid, _ = layout
    parts = [part for part in ranks_of(filled(shape, torch.int64), grid) if not part.box.is_empty]
    if parts:
        del parts[data.draw(st.integers(0, len(parts) - 1))]
        nothing = Part(torch.empty(0), Box((0,) * len(shape), (0,) * len(shape)), shape, writes=False)
        with pytest.raises(CheckpointError, match="tensor t: no rank wrote"):
            merge_entries([save_parts(depot, {"t": part}) for part in [*parts, nothing]])


def test_a_flipped_byte_is_refused_by_who_reads_it_and_by_nobody_else(depot: LocalDepot) -> None:
    tensor = torch.arange(32.0).reshape(8, 4)
    entry = save_by_ranks(depot, "t", ranks_of(tensor, (2, 1)))
    damage(depot, entry.chunks[1].object, 5)
    upper, lower = ranks_of(torch.zeros(8, 4), (2, 1))
    load_part(depot, "t", entry, upper)
    assert torch.equal(upper.tensor, tensor[:4])
    with pytest.raises(CorruptObjectError, match="tensor t, bytes 0-64"):
        load_part(depot, "t", entry, lower)
    assert not lower.tensor.any()


def test_what_is_missing_or_damaged_is_told_by_all_the_tensors_that_lie_there(depot: LocalDepot) -> None:
    entries = save_tensors(depot, {name: torch.arange(4.0) for name in "abcde"})
    entries |= save_tensors(depot, {"z": torch.ones(2)})
    parts = {"c": Part.whole(torch.empty(4))}
    damage(depot, entries["c"].chunks[0].object, 32)
    with pytest.raises(CorruptObjectError, match=r"tensor c, bytes 32-48 \(it also holds tensors a, b and 2 more\)"):
        load_parts(depot, entries, parts)
    depot.path(entries["c"].chunks[0].object).unlink()
    for read in (lambda: load_parts(depot, entries, parts), lambda: verify_tensors(depot, entries)):
        with pytest.raises(StoreError, match=r"is missing in depot .* \(tensors a, b and 3 more\)"):
            read()
    depot.path(entries["z"].chunks[0].object).unlink()
    with pytest.raises(StoreError, match=r"are missing in depot .* \(tensors a, b and 4 more\)"):
        verify_tensors(depot, entries)


def test_ranks_verify_a_share_each_and_together_all(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHUNK_BYTES", 16)
    entries = save_tensors(depot, {"a": torch.arange(40.0).reshape(10, 4), "b": torch.ones(3)})
    assert sum(verify_tensors(depot, entries, share=(rank, 3)) for rank in range(3)) == 172
    damage(depot, entries["a"].chunks[0].object, 100)
    refused = 0
    for rank in range(3):
        try:
            verify_tensors(depot, entries, share=(rank, 3))
        except CorruptObjectError:
            refused += 1
    assert refused == 1


def test_a_part_of_another_global_shape_or_dtype_is_refused_before_anything_is_read(depot: LocalDepot) -> None:
    entries = save_tensors(depot, {"a": torch.ones(4), "b": torch.ones(4, 2)})
    first = torch.zeros(4)
    for other in (torch.zeros(2, 2), torch.zeros(4, 2).double()):
        part = Part(other, Box.whole(tuple(other.shape)), (8, 2) if other.shape[0] == 2 else (4, 2), writes=True)
        with pytest.raises(CheckpointError, match=r"tensor b is float32\[4, 2\], the model wants"):
            load_parts(depot, entries, {"a": Part.whole(first), "b": part})
        assert not first.any()


def test_a_chunk_that_the_checkpoint_before_holds_is_not_written_again(
    depot: LocalDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "CHUNK_BYTES", 64)
    monkeypatch.setattr(saving, "OBJECT_BYTES", 150)
    before = {"a": torch.arange(64.0).reshape(16, 4), "b": torch.ones(3), "c": torch.ones(2)}
    entries = save_tensors(depot, before)
    after = {**before, "a": before["a"].clone(), "c": torch.ones(2, dtype=torch.int32)}
    after["a"][5] += 1
    stored = {name for name, _ in depot.objects()}
    parts = {name: Part.whole(tensor) for name, tensor in after.items()}
    again = save_parts(depot, parts, entries)
    changed = {name: [i for i, c in enumerate(again[name].chunks) if c not in entries[name].chunks] for name in after}
    assert changed == {"a": [1], "b": [], "c": [0]}  # the second block of four rows, and what has another dtype
    new = {name: size for name, size in depot.objects() if name not in stored}
    assert sum(new.values()) == 64 + 8
    read = {name: torch.empty_like(tensor) for name, tensor in after.items()}
    load_parts(depot, again, {name: Part.whole(tensor) for name, tensor in read.items()})
    assert all(torch.equal(read[name], after[name]) for name in after)
    n_files = len(list(depot.objects()))
    assert save_parts(depot, parts, again) == again
    assert len(list(depot.objects())) == n_files


@given(layouts(), st.integers(1, 100), st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_saved_beside_a_checkpoint_before_is_what_was_there(
    depot: LocalDepot,
    layout: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    chunk_bytes: int,
    object_bytes: int,
    data: st.DataObject,
) -> None:
    """Whatever changed, and also where the checkpoint before is of another layout."""
    shape, grid, other_grid = layout
    tensor = filled(shape, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(saving, "OBJECT_BYTES", object_bytes)
        before = save_by_ranks(depot, "t", ranks_of(tensor, other_grid))
        changed = tensor.clone()
        for at in data.draw(st.lists(st.integers(0, max(0, tensor.numel() - 1)), max_size=3)):
            if tensor.numel():
                changed.view(-1)[at] += 1
        parts = ranks_of(changed, grid)
        entry = merge_entries([save_parts(depot, {"t": part}, {"t": before}) for part in parts])["t"]
    read = torch.zeros_like(tensor)
    load_tensor(depot, "t", entry, read)
    assert torch.equal(read, changed)


def test_damage_found_where_bytes_are_read_in_place_leaves_none_of_them(depot: LocalDepot) -> None:
    tensor = torch.arange(1.0, 9.0)
    entries = save_tensors(depot, {"t": tensor})
    name = entries["t"].chunks[0].object
    damage(depot, name, 3)
    read = torch.full((8,), 7.0)
    with pytest.raises(CorruptObjectError, match="tensor t, bytes 0-32"):
        load_tensor(depot, "t", entries["t"], read)
    assert not read.any()
    depot.path(name).write_bytes(b"short")
    with pytest.raises(CorruptObjectError, match="tensor t"):
        load_tensor(depot, "t", entries["t"], read)
    assert not read.any()
