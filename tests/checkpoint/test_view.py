"""A checkpoint looks like safetensors files, whatever ranks wrote it, and damage in it is noticed."""

import itertools
import json
import math
import signal
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bushcraft.checkpoint import view
from bushcraft.checkpoint.manifest import CheckpointManifest, Chunk, TensorEntry, TokenizerEntry, write_manifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.errors import CorruptObjectError
from bushcraft.parallel.box import Box
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.blocks import BlockCache, File
from bushcraft.store.outside.tree import find, tree
from bushcraft.store.workspace import Store
from tests.store.mounted import Mounted, needs_fuse


def publish(depot: LocalDepot, entries: dict[str, TensorEntry], run: str = "r") -> str:
    code = depot.put_bytes(b"code")
    tokenizer = TokenizerEntry(depot.put_bytes(b"{}"), None, ())
    recipe = {"run": {"name": run}}
    return write_manifest(
        depot, CheckpointManifest(run, 8, 1, "0" * 64, code, recipe, {}, code, {}, entries, tokenizer)
    )


def file_at(depot: LocalDepot, path: str) -> File:
    node = find(tree(depot), path)
    assert isinstance(node, File)
    return node


def copied(file: File, place: Path) -> Path:
    """The whole file, by reads as a mount would make them."""
    cache, step = BlockCache(10**6), 128 * 1024
    place.write_bytes(b"".join(file.read(at, at + step, cache) for at in range(0, file.size, step)))
    return place


def same_bits(one: Tensor, two: Tensor) -> bool:
    return (
        one.dtype == two.dtype and one.shape == two.shape and one.numpy(force=True).tobytes() == two.numpy().tobytes()
    )


KINDS = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)


def test_every_tensor_is_read_by_safetensors(depot: LocalDepot, tmp_path: Path) -> None:
    tensors = {f"model/{kind}": torch.randint(0, 2, (3, 5)).to(kind) for kind in KINDS}
    tensors |= {
        "model/scalar": torch.tensor(7.0),
        "model/empty": torch.empty(0, 4),
        "model/odd": torch.ones(3, dtype=torch.uint8),
    }
    others = {"optimizer/exp_avg/a": torch.randn(4), "step": torch.tensor(3)}
    publish(depot, save_tensors(depot, tensors | others))
    read = load_file(copied(file_at(depot, "checkpoints/r/1/model.safetensors"), tmp_path / "m"))
    assert read.keys() == {name.removeprefix("model/") for name in tensors}
    assert all(same_bits(tensors[f"model/{name}"], tensor) for name, tensor in read.items())
    assert load_file(copied(file_at(depot, "checkpoints/r/1/optimizer.safetensors"), tmp_path / "o")).keys() == {
        "exp_avg/a"
    }
    assert load_file(copied(file_at(depot, "checkpoints/r/1/tensors.safetensors"), tmp_path / "t")).keys() == {"step"}


def test_bfloat16_is_read_bit_by_bit(depot: LocalDepot, tmp_path: Path) -> None:
    tensor = torch.randn(7, 3).bfloat16()
    publish(depot, save_tensors(depot, {"model/b": tensor}))
    with safe_open(copied(file_at(depot, "checkpoints/r/1/model.safetensors"), tmp_path / "m"), "pt") as file:
        assert file.metadata() == {"format": "pt", "run": "r", "position": "8", "step": "1", "part": "model"} | {
            "manifest": depot.latest("checkpoints/r")
        }
        assert torch.equal(file.get_tensor("b"), tensor)
        assert torch.equal(file.get_slice("b")[2:4, 1:], tensor[2:4, 1:])


@needs_fuse
def test_mounted_checkpoint_is_loaded_by_safetensors(depot: LocalDepot, store: Store, tmp_path: Path) -> None:
    """Whole, and by slices from the memory map; so do all that load weights by name from a path."""
    whole = torch.randn(300, 70)
    boxes = [part for at in range(0, 70, 35) for part in in_rows(Box((0, at), (300, 35)), 64)]
    publish(depot, {"model/w": entry_of(depot, whole, boxes)} | save_tensors(depot, {"model/b": torch.ones(9)}))
    mounted = Mounted(store.root, tmp_path / "mnt")
    try:
        path = mounted.where / "checkpoints" / "r" / "1" / "model.safetensors"
        read = load_file(path)
        with safe_open(path, "pt") as file:
            rows = file.get_slice("w")[100:200, 30:40]
    finally:
        assert mounted.end(signal.SIGTERM) == ""
    assert torch.equal(read["w"], whole)
    assert torch.equal(read["b"], torch.ones(9))
    assert torch.equal(rows, whole[100:200, 30:40])


def cut(shape: tuple[int, ...], cuts: list[list[int]]) -> list[Box]:
    """The boxes of a grid with these cuts along each dimension."""
    boxes = [Box((), ())]
    for size, inner in zip(shape, cuts, strict=True):
        edges = sorted({0, size, *(at % (size + 1) for at in inner)})
        boxes = [
            Box((*box.offset, begin), (*box.shape, end - begin))
            for box in boxes
            for begin, end in itertools.pairwise(edges)
        ]
    return boxes


def test_every_tensor_is_aligned_to_its_elements(depot: LocalDepot) -> None:
    """A reader may use the mapped bytes as they are."""
    tensors = {"model/a": torch.ones(3, dtype=torch.uint8), "model/b": torch.ones(3).half(), "model/c": torch.ones(3)}
    file = file_at_manifest(depot, publish(depot, save_tensors(depot, tensors)))
    n_bytes = int.from_bytes(file.read(0, 8), "little")
    header = json.loads(file.read(8, 8 + n_bytes))
    begins = {name: 8 + n_bytes + header[name]["data_offsets"][0] for name in "abc"}
    assert (begins["b"] % 2, begins["c"] % 4) == (0, 0)


def entry_of(depot: LocalDepot, whole: Tensor, boxes: list[Box]) -> TensorEntry:
    """The tensor as ranks that hold these boxes store it."""
    shape = tuple(whole.shape)
    data = [whole[box.within(Box.whole(shape))].contiguous().numpy().tobytes() for box in boxes]
    name = depot.put_bytes(b"".join(data))
    ends = list(itertools.accumulate(map(len, data)))
    chunks = [
        Chunk(box.offset, box.shape, name, end - len(part), end, xxhash.xxh3_128_hexdigest(part))
        for box, part, end in zip(boxes, data, ends, strict=True)
    ]
    return TensorEntry(shape, "float32", tuple(sorted(chunks, key=lambda chunk: chunk.offset)))


def in_rows(box: Box, step: int) -> list[Box]:
    """The box cut into blocks of so many rows."""
    return [
        Box((box.offset[0] + at, *box.offset[1:]), (min(step, box.shape[0] - at), *box.shape[1:]))
        for at in range(0, box.shape[0], step)
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=3, max_size=3),
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    block_bytes=st.integers(4, 400),
    data=st.data(),
)
def test_boxes_of_many_ranks_become_one_tensor(
    depot: LocalDepot,
    shape: tuple[int, ...],
    cuts: list[list[int]],
    rows: list[int],
    block_bytes: int,
    data: st.DataObject,
) -> None:
    """Each rank cuts the rows of its box in its own way."""
    whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    of_ranks = zip(cut(shape, cuts[: len(shape)]), itertools.cycle(rows))
    entry = entry_of(depot, whole, [part for box, step in of_ranks for part in in_rows(box, step)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "BLOCK_BYTES", block_bytes)
        file = file_at_manifest(depot, publish(depot, {"model/w": entry}))
    header_bytes = 8 + int.from_bytes(file.read(0, 8), "little")
    expected = whole.numpy().tobytes()
    assert file.read(header_bytes, file.size) == expected
    begin = data.draw(st.integers(header_bytes, file.size))
    end = data.draw(st.integers(begin, file.size + 3))
    assert file.read(begin, end) == expected[begin - header_bytes : end - header_bytes]


def file_at_manifest(depot: LocalDepot, name: str) -> File:
    file = view.checkpoint(depot, name).child("model.safetensors")
    assert isinstance(file, File)
    return file


def test_a_block_is_no_larger_than_allowed(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every rank holds some columns of all rows: the rows are put together some at a time."""
    monkeypatch.setattr(view, "BLOCK_BYTES", 1000)
    whole = torch.randn(64, 50)
    entry = entry_of(depot, whole, [Box((0, at), (64, 10)) for at in range(0, 50, 10)])
    file = file_at_manifest(depot, publish(depot, {"model/w": entry}))
    sizes = [end - begin for begin, end in zip(file.begins[1:], [*file.begins[2:], file.size], strict=True)]
    assert max(sizes) == 1000
    assert file.read(file.begins[1], file.size) == whole.numpy().tobytes()


def test_damage_is_an_error_of_the_tensor_that_has_it(depot: LocalDepot) -> None:
    entries = save_tensors(depot, {"model/a": torch.zeros(10), "model/b": torch.ones(10)})
    file = file_at_manifest(depot, publish(depot, entries))
    chunk = entries["model/b"].chunks[0]
    path = depot.path(chunk.object)
    good = path.read_bytes()
    path.write_bytes(good[: chunk.begin] + b"\1" + good[chunk.begin + 1 :])
    data = file.begins[1]
    assert file.read(data, data + 40) == bytes(40)
    with pytest.raises(CorruptObjectError, match=chunk.object):
        file.read(data, data + 41)


def test_what_the_manifest_names_stands_beside(depot: LocalDepot) -> None:
    name = publish(depot, save_tensors(depot, {"model/a": torch.zeros(10)}), run="team/r")
    directory = find(tree(depot), "checkpoints/team/r/1")
    assert not isinstance(directory, File | None)
    assert list(directory.names()) == [
        "code.tar.zst",
        "manifest.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
    ]
    assert file_at(depot, "checkpoints/team/r/1/manifest.json").read(0, 10**6) == depot.read(name)
    assert json.loads(file_at(depot, "checkpoints/team/r/1/recipe.json").read(0, 10**6)) == {"run": {"name": "team/r"}}
    assert file_at(depot, "checkpoints/team/r/1/code.tar.zst").read(0, 10) == b"code"


def test_same_tensors_of_another_checkpoint_are_another_file(depot: LocalDepot) -> None:
    one, two = (publish(depot, save_tensors(depot, {"model/a": torch.full((2,), x)})) for x in (0.0, 1.0))
    assert file_at_manifest(depot, one).identity != file_at_manifest(depot, two).identity
