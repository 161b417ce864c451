"""A checkpoint gives back every bit, notices every damage, and the newest whole one is found."""

import json

import pytest
import torch
from torch import Tensor

from bushcraft.checkpoint.manifest import CheckpointManifest, read_manifest, write_manifest
from bushcraft.checkpoint.newest import newest, verify
from bushcraft.checkpoint.tensors import load_tensor, save_tensors
from bushcraft.errors import BushcraftError, CheckpointError, CorruptObjectError
from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "model/a": torch.randn(7, 5),
        "model/b": torch.randn(3).bfloat16(),
        "optimizer/exp_avg/a": torch.tensor([float("nan"), -0.0, 1e-45]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
    }


def _save(depot: LocalDepot, position: int, tensors: dict[str, Tensor] | None = None) -> str:
    entries = save_tensors(depot, _tensors() if tensors is None else tensors)
    ledger, code = depot.put_bytes(b"ledger"), depot.put_bytes(b"code")
    manifest = CheckpointManifest("r", position, position // 8, "0" * 64, ledger, {}, {}, code, {"step": 1.0}, entries)
    return write_manifest(depot, manifest)


def test_every_bit_comes_back(depot: LocalDepot) -> None:
    manifest = read_manifest(depot, _save(depot, 8))
    for name, tensor in _tensors().items():
        into = torch.full_like(tensor, 9)
        load_tensor(depot, name, manifest.tensors[name], into)
        assert (
            into.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes()
            if tensor.dtype != torch.bfloat16
            else bool((into == tensor).all())
        )


def test_objects_are_split_and_read_back(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.checkpoint.save_parts.OBJECT_BYTES", 100)
    tensors = {f"t{i}": torch.randn(11) for i in range(9)}
    entries = save_tensors(depot, tensors)
    assert len({chunk.object for entry in entries.values() for chunk in entry.chunks}) == 3
    for name, tensor in tensors.items():
        into = torch.empty(11)
        load_tensor(depot, name, entries[name], into)
        assert torch.equal(into, tensor)


def test_manifest_round_trips(depot: LocalDepot) -> None:
    manifest = read_manifest(depot, _save(depot, 8))
    assert write_manifest(depot, manifest) == object_name(depot.read(depot.latest("checkpoints/r") or ""))


def test_manifest_is_read_with_or_without_spaces(depot: LocalDepot) -> None:
    name = _save(depot, 8)
    spaced = json.dumps(json.loads(depot.read(name)), indent=1, sort_keys=True).encode()
    assert read_manifest(depot, depot.put_bytes(spaced)) == read_manifest(depot, name)


def test_every_flipped_byte_of_the_tensors_is_noticed(depot: LocalDepot) -> None:
    name = _save(depot, 8, {"a": torch.arange(12.0)})
    chunk = read_manifest(depot, name).tensors["a"].chunks[0]
    path = depot.path(chunk.object)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(CorruptObjectError, match=f"tensor a, bytes {chunk.begin}-{chunk.end}"):
            verify(depot, name)


def test_newest_whole_checkpoint_is_found_behind_damaged_ones(depot: LocalDepot) -> None:
    names = [_save(depot, 8 * i, {"a": torch.full((4,), float(i))}) for i in range(1, 5)]
    depot.path(read_manifest(depot, names[3]).tensors["a"].chunks[0].object).write_bytes(b"short")
    depot.path(names[2]).unlink()
    passed: list[tuple[str, BushcraftError]] = []
    found = newest(depot, "r", lambda name, error: passed.append((name, error)))
    assert found is not None
    assert found[0] == names[1]
    assert [name for name, _ in passed] == [names[3], names[2]]
    assert all(error.message.endswith("; the checkpoint of position 16 is whole") for _, error in passed)
    assert "tensor a" in passed[0][1].message


def test_a_checkpoint_that_misses_objects_is_told_by_its_tensors(depot: LocalDepot) -> None:
    """Five tensors lie in one object."""
    good = _save(depot, 8, {"a": torch.zeros(4)})
    bad = _save(depot, 16, {name: torch.ones(4) for name in "abcde"})
    missing = read_manifest(depot, bad).tensors["a"].chunks[0].object
    depot.path(missing).unlink()
    told: list[str] = []
    found = newest(depot, "r", lambda _, error: told.append(error.message))
    assert found is not None
    assert found[0] == good
    assert told == [
        f"object {missing} is missing in depot {depot.root} (tensors a, b and 3 more); "
        "the checkpoint of position 8 is whole"
    ]


def test_ranks_bring_their_own_way_to_verify(depot: LocalDepot) -> None:
    _save(depot, 8)
    newer = _save(depot, 16)

    def verified(depot: LocalDepot, name: str) -> CheckpointManifest:
        if name == newer:
            raise CorruptObjectError("another rank found damage")
        return verify(depot, name, share=(0, 2))[0]

    found = newest(depot, "r", lambda *_: None, verified)
    assert found is not None
    assert found[1].position == 8


def test_run_without_a_whole_checkpoint_is_refused_not_begun_anew(depot: LocalDepot) -> None:
    name = _save(depot, 8)
    depot.path(name).unlink()
    told: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest(depot, "r", lambda _, error: told.append(error.message))
    assert told == [f"object {name} is missing in depot {depot.root}; no older one is whole"]
    assert newest(depot, "another", lambda *_: None) is None


@pytest.mark.parametrize("into", [torch.empty(5, 7), torch.empty(7, 5, dtype=torch.float64)])
def test_tensor_of_another_shape_or_dtype_is_refused(depot: LocalDepot, into: Tensor) -> None:
    manifest = read_manifest(depot, _save(depot, 8))
    with pytest.raises(CheckpointError, match="model/a"):
        load_tensor(depot, "model/a", manifest.tensors["model/a"], into)


def test_chunks_are_boxes_of_the_global_tensor(depot: LocalDepot) -> None:
    """Another layout may have written it in pieces."""
    from dataclasses import replace

    whole = torch.arange(24.0).view(4, 6)
    entries = save_tensors(depot, {"left": whole[:, :2], "right": whole[:, 2:]})
    pieces = [replace(entries[n].chunks[0], offset=(0, o)) for n, o in (("left", 0), ("right", 2))]
    into = torch.empty(4, 6)
    load_tensor(depot, "t", replace(entries["left"], shape=(4, 6), chunks=tuple(pieces)), into)
    assert torch.equal(into, whole)


def test_object_that_is_no_checkpoint_is_refused(depot: LocalDepot) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_manifest(depot, depot.put_bytes(b"[1, 2]"))
