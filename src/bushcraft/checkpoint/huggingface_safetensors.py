"""The tensors of a Hugging Face folder: `model.safetensors`, or shards that `model.safetensors.index.json` lists.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bushcraft.checkpoint.huggingface_files import json_file
from bushcraft.errors import CheckpointError

SHARD_BYTES = 4 * 2**30
"""A file holds at most so many, or one tensor."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
"""What is written, by its name in the format."""
READABLE = {"F32", "BF16", "F16"}
"""What fp32 holds without loss."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor is, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """The format's name of it, such as BF16."""


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by their names. Errors: `CheckpointError` about the file that is missing or damaged."""
    found: dict[str, Stored] = {}
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                about = file.get_slice(name)
                found[name] = Stored(path, tuple(about.get_shape()), str(about.get_dtype()))
    return found


def read_tensor(name: str, stored: Stored) -> Tensor:
    """In fp32."""
    with _opened(stored.file) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float()


def _files(folder: Path) -> list[Path]:
    """As `transformers` chooses: the single file if there is one."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX}", "Save the model by save_pretrained of `transformers`"
        )
    map_ = json_file(folder / INDEX).get("weight_map")
    if not isinstance(map_, dict) or not all(isinstance(name, str) for name in map_.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map", "Copy the folder again")
    names = sorted(set(map_.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / INDEX} lists {name}, which is not there", "Copy the folder again")
    return [folder / name for name in names]


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}", "Copy it again") from None


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Write all tensors, in one file or in shards of at most `SHARD_BYTES` with an index. Errors: OSError."""
    shards = _shards(shapes, dtype.itemsize)
    if len(shards) == 1:
        return _write_file(folder / SINGLE, tensors, shards[0], dtype)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, tensors, shard, dtype)
        where |= dict.fromkeys(shard, name)
    total = sum(_n_bytes(shape, dtype.itemsize) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return None


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        size = _n_bytes(shape, itemsize)
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= size
    return shards


def _write_file(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """One file, tensor by tensor: `safetensors.torch.save_file` would hold all of them in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + _n_bytes(shape, dtype.itemsize)
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            flat = tensors[name].to(dtype).contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _n_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    return torch.Size(shape).numel() * itemsize
