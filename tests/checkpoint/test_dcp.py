"""Directories of torch DCP come in to the bit, and nothing in them is run."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from bushcraft.checkpoint.dcp import METADATA, DcpDirectory, import_dcp
from bushcraft.checkpoint.tensors import load_tensor
from bushcraft.checkpoint.weights import find_checkpoint, load_weights
from bushcraft.cli import main
from bushcraft.errors import CheckpointError
from bushcraft.model.transformer import build_model
from bushcraft.store.local import LocalDepot
from bushcraft.store.workspace import Store
from bushcraft.train.resolve import load_recipe
from tests.conftest import random_documents, write_dataset


def tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1.5, -0.0]).bfloat16(), "c": torch.tensor(3.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there
        dcp.save({"model": tensors(), "step": 5, "lr": {"x": [1]}}, checkpoint_id=tmp_path / "dcp")
    return tmp_path / "dcp"


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors().items()}


def test_a_directory_becomes_a_checkpoint_with_its_numbers(folder: Path, depot: LocalDepot) -> None:
    name, manifest = import_dcp(depot, DcpDirectory(folder), "in", {}, {}, shapes(), "model.")
    assert depot.latest("checkpoints/in") == name
    for key, tensor in tensors().items():
        into = torch.empty(tensor.shape)
        load_tensor(depot, key, manifest.tensors[f"model/{key}"], into)
        assert torch.equal(into, tensor.float())


def _save_sharded(rank: int, folder: str, store: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    parts = {
        "rows": distribute_tensor(torch.arange(15.0).reshape(5, 3), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.arange(15.0).reshape(3, 5), mesh, [Shard(1)]),
        "copies": distribute_tensor(torch.arange(4.0), mesh, [Replicate()]),
    }
    dcp.save(parts, checkpoint_id=folder)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shards_of_two_ranks_are_put_together(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "dcp"), str(tmp_path / "rendezvous"))
    torch.multiprocessing.spawn(_save_sharded, arguments, nprocs=2)  # type: ignore[attr-defined]
    found = DcpDirectory(tmp_path / "dcp")
    assert torch.equal(found.read("rows"), torch.arange(15.0).reshape(5, 3))
    assert torch.equal(found.read("columns"), torch.arange(15.0).reshape(3, 5))
    assert torch.equal(found.read("copies"), torch.arange(4.0))


class Hostile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def test_code_in_the_metadata_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / METADATA).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"wants posix\.system, which does not describe tensors: refused"):
        DcpDirectory(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_tensors_bytes_is_not_run_also_where_the_metadata_is_allowed_to(folder: Path, tmp_path: Path) -> None:
    found: Metadata = pickle.loads((folder / METADATA).read_bytes())
    torch.save(Hostile(tmp_path / "ran"), folder / "evil.distcp")
    for stored in found.storage_data.values():
        stored.relative_path, stored.offset, stored.length = "evil.distcp", 0, (folder / "evil.distcp").stat().st_size
    (folder / METADATA).write_bytes(pickle.dumps(found))
    for allow_pickle in (False, True):
        with pytest.raises(CheckpointError, match=r"tensor model\.a: evil\.distcp, byte 0: "):
            DcpDirectory(folder, allow_pickle).read("model.a")
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_one_line_that_names_it(folder: Path, depot: LocalDepot) -> None:
    source = DcpDirectory(folder)
    with pytest.raises(CheckpointError, match=r"the directory has no tensor a; it has model\.a, model\.b, model\.c"):
        import_dcp(depot, source, "in", {}, {}, shapes())
    with pytest.raises(CheckpointError, match=r"tensor model\.a is \[3, 4\], the recipe's model wants \[4, 4\]"):
        import_dcp(depot, source, "in", {}, {}, {"a": (4, 4)}, "model.")
    (data,) = folder.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-600])
    with pytest.raises(CheckpointError, match=r"tensor model\."):
        import_dcp(depot, source, "in", {}, {}, shapes(), "model.")
    (folder / METADATA).write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="is damaged"):
        DcpDirectory(folder)
    assert depot.refs("checkpoints") == []


def test_the_command_takes_the_model_from_a_recipe_and_finds_the_format_itself(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = list(random_documents(0, 4, 200))
    write_dataset(store.depot, "python", [documents], documents)
    recipe = load_recipe("smoke", ["model.vocab_size=4096"]).recipe
    model = build_model(recipe.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"net": dict(model.named_parameters())}, checkpoint_id=tmp_path / "dcp")

    def command(*words: str) -> str:
        line = ["bushcraft", "checkpoint", "import", str(tmp_path / "dcp"), *words, "--store", str(store.root)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr()
        return told.out + told.err

    chosen = ("--recipe", "smoke", "--set", "model.vocab_size=4096")
    assert "Name what stands in front of the parameters' names by --prefix" in command("mine", *chosen)
    assert "checkpoint mine: " in command("mine", *chosen, "--prefix", "net.")
    again = build_model(recipe.model)
    load_weights(store.depot, *find_checkpoint(store.depot, "mine"), again)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert "'mine' has checkpoints already" in command("mine", *chosen, "--prefix", "net.")
    assert "are not for" in command("other", "--format", "huggingface", "--prefix", "net.")
