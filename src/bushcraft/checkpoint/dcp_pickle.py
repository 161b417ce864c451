"""The `.metadata` of a torch DCP directory, a pickle, read without running what it says.

Only the classes that DCP describes tensors with are known to the reader; any other name ends the reading before it is
looked up. Format: torch/distributed/checkpoint/{metadata,filesystem}.py.
"""

import collections
import io
import pickle
from pathlib import PosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.serialization import _get_layout

from bushcraft.errors import CheckpointError

_METADATA = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_KNOWN: dict[tuple[str, str], Any] = {
    **{("torch.distributed.checkpoint.metadata", name): getattr(metadata, name) for name in _METADATA},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


def read_metadata(data: bytes, where: str, allow_pickle: bool = False) -> metadata.Metadata:
    """What DCP says of its tensors; `where` is the file, as messages name it.

    With `allow_pickle` the file is unpickled as Python does, which runs whatever code is in it.
    Errors: `CheckpointError`.
    """
    try:
        found = pickle.loads(data) if allow_pickle else _Reader(io.BytesIO(data), where).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"{where} is damaged: {error}", "Copy the directory again") from None
    if not isinstance(found, metadata.Metadata):
        raise CheckpointError(f"{where} is not of torch DCP", "Name what torch.distributed.checkpoint.save has written")
    return found


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, where: str) -> None:
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise CheckpointError(
                f"{self._where} is a pickle that wants {module}.{name}, which does not describe tensors: refused",
                "If you trust who wrote it, add --allow-pickle: it runs the code that is in the file",
            )
        return _KNOWN[module, name]
