"""A torch DCP directory → a checkpoint of the store, a chunk of a tensor at a time.

Format: torch/distributed/checkpoint/filesystem.py: `.metadata` says for each chunk of a tensor in which `.distcp` file
it lies, from which byte on, and how long it is; there lies what torch.save or safetensors wrote.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

import bushcraft
from bushcraft.checkpoint.code import save_code
from bushcraft.checkpoint.dcp_pickle import read_metadata
from bushcraft.checkpoint.huggingface_files import read_file
from bushcraft.checkpoint.huggingface_tensors import Converted
from bushcraft.checkpoint.manifest import CheckpointManifest, write_manifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import PREFIX
from bushcraft.errors import CheckpointError
from bushcraft.parallel.box import Box
from bushcraft.store.depot import Depot

METADATA = ".metadata"
_COPY_AGAIN = "Copy the directory again"


class DcpDirectory:
    """What torch.distributed.checkpoint.save has written.

    Errors of all methods: `CheckpointError` that names the file or tensor.
    """

    def __init__(self, folder: Path, allow_pickle: bool = False) -> None:
        self._folder = folder
        path = folder / METADATA
        self._metadata: Metadata = read_metadata(read_file(path), str(path), allow_pickle)
        self._storage: dict[Any, Any] = self._metadata.storage_data

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' names and global shapes."""
        return {name: tuple(about.size) for name, about in self._tensors().items()}

    def read(self, name: str) -> Tensor:
        """One whole tensor, put together from its chunks."""
        about = self._tensors()[name]
        whole = Box.whole(tuple(about.size))
        tensor = torch.empty(whole.shape, dtype=about.properties.dtype)
        n_read = 0
        for chunk in about.chunks:
            box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            if whole.intersection(box) != box:
                raise self._damaged(name, "a chunk lies outside of it")
            tensor[box.within(whole)] = self._chunk(name, box, tensor.dtype)
            n_read += box.numel
        if n_read != whole.numel:
            raise self._damaged(name, f"{n_read} of its {whole.numel} elements are there")
        return tensor

    def _tensors(self) -> dict[str, TensorStorageMetadata]:
        found = self._metadata.state_dict_metadata.items()
        return {name: about for name, about in found if isinstance(about, TensorStorageMetadata)}

    def _chunk(self, name: str, box: Box, dtype: torch.dtype) -> Tensor:
        stored = self._stored(name, box)
        path = self._folder / stored.relative_path
        if path.name != str(stored.relative_path):
            raise self._damaged(name, f"it lies outside of the directory, in {stored.relative_path}")
        if stored.transform_descriptors:
            raise CheckpointError(
                f"{self._folder}: tensor {name} is stored as {', '.join(stored.transform_descriptors)}",
                "Save it without extensions of the storage writer",
            )
        try:
            with path.open("rb") as file:
                file.seek(stored.offset)
                data = file.read(stored.length)
        except OSError as error:
            raise self._damaged(name, f"{path.name}: {error.strerror}") from None
        try:
            tensor = _parsed(data)
        except Exception as error:  # damaged bytes raise anything
            reason = str(error).partition("\n")[0]
            raise self._damaged(name, f"{path.name}, byte {stored.offset}: {reason}") from None
        if (tuple(tensor.shape), tensor.dtype) != (box.shape, dtype):
            raise self._damaged(name, f"a chunk is {tensor.dtype}{list(tensor.shape)}, not {dtype}{list(box.shape)}")
        return tensor

    def _stored(self, name: str, box: Box) -> Any:
        """Where a chunk lies: the index of a tensor that is not sharded may leave its offset away."""
        for index, stored in self._storage.items():
            if index.fqn == name and (index.offset is None or tuple(index.offset) == box.offset):
                return stored
        raise self._damaged(name, f"no file has the chunk at {list(box.offset)}")

    def _damaged(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._folder}: tensor {name}: {why}", _COPY_AGAIN)


def import_dcp(
    depot: Depot,
    source: DcpDirectory,
    name: str,
    recipe: Mapping[str, Any],
    datasets: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[str, CheckpointManifest]:
    """Make the model's tensors the newest checkpoint `name`, in fp32; the object name of its manifest, and that.

    `datasets` are those of the recipe: source name → object name of the manifest.
    `wanted` are the model's parameters and shapes; each is `prefix` + its name in the directory, where others are left
    alone. At most a few tensors are in memory. `progress` hears how many are read, of how many.
    Errors: `CheckpointError` that names the first tensor that is missing or of another shape; `StoreError`.
    """
    if depot.latest(f"checkpoints/{name}") is not None:
        raise CheckpointError(f"{name!r} has checkpoints already", "Import under another name")
    there = source.shapes()
    for key, shape in wanted.items():
        if prefix + key not in there:
            raise CheckpointError(
                f"the directory has no tensor {prefix + key}; it has {', '.join(sorted(there)[:3])} and others",
                "Name what stands in front of the parameters' names by --prefix, and the model by --recipe and --set",
            )
        if there[prefix + key] != shape:
            raise CheckpointError(
                f"tensor {prefix + key} is {list(there[prefix + key])}, the recipe's model wants {list(shape)}",
                "Set the [model] section to that of the checkpoint by --recipe and --set",
            )

    def make(key: str) -> Callable[[], Tensor]:
        return lambda: source.read(prefix + key).float()

    root = {"format": "bushcraft-ledger", "version": 1, "run": name, "events": 0, "segments": []}
    manifest = CheckpointManifest(
        run=name,
        position=0,
        step=0,
        receipt="0" * 64,
        ledger=depot.put_bytes(json.dumps(root, sort_keys=True).encode()),
        recipe=dict(recipe),
        datasets=dict(datasets),
        code=save_code(depot, Path(bushcraft.__file__).parent),
        optimizer={},
        tensors=save_tensors(depot, Converted({PREFIX + key: make(key) for key in wanted}, progress)),
    )
    return write_manifest(depot, manifest), manifest


def _parsed(data: bytes) -> Tensor:
    """What torch.save wrote (read by its restricted unpickler), or the one tensor of a safetensors file."""
    if data[:4] == b"PK\x03\x04":
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(found, Tensor):
            raise ValueError("it is not a tensor")
        return found
    from safetensors.torch import load

    (tensor,) = load(data).values()
    return tensor
