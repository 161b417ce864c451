"""Initial weights from (seed, parameter name, global element): the same in every layout.

Element i of a parameter reads word i of a Philox stream whose key is the BLAKE3 hash of seed and name, so
any slice can be made without the rest. Source: Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3". Normal by the inverse of its distribution function, which uses one word an element.
"""

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor, nn

WORDS_PER_COUNTER = 4


def initialise(model: nn.Module, seed: int) -> None:
    """Fill all parameters of a model in place."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        initialise_box(parameter.data, seed, name, shape, (0,) * len(shape))


def initialise_box(tensor: Tensor, seed: int, name: str, shape: tuple[int, ...], offset: tuple[int, ...]) -> None:
    """Fill in place what lies at `offset` of the parameter of that name and global shape.

    Embeddings and matrices are normal with deviation D_in**-0.5 (embeddings: 0.02); projections that write to
    the residual stream are zero, so that each block begins as the identity; norms are one.
    """
    std = _deviation(name, shape)
    if len(shape) == 1:
        tensor.fill_(1.0)
    elif std == 0.0:
        tensor.zero_()
    elif tensor.numel():
        (first, left), (n_rows, n_columns) = offset, tensor.shape
        values = normal_slice(seed, name, first * shape[1], (first + n_rows) * shape[1])
        tensor.copy_(torch.from_numpy(values).view(n_rows, shape[1])[:, left : left + n_columns]).mul_(std)


def normal_slice(seed: int, name: str, begin: int, end: int) -> NDArray[np.float32]:
    """Elements [begin, end) of the standard normal stream of a parameter, flattened row-major."""
    key = np.frombuffer(blake3(f"{seed}/{name}".encode()).digest(length=16), np.uint64)
    first = begin // WORDS_PER_COUNTER
    generator = np.random.Philox(key=key, counter=first)
    words = generator.random_raw(end - first * WORDS_PER_COUNTER)[begin - first * WORDS_PER_COUNTER :]
    uniform = (torch.from_numpy((words >> np.uint64(11)).astype(np.float64)) + 0.5) * 2.0**-53
    return torch.special.ndtri(uniform).float().numpy()  # type: ignore[no-any-return]


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    kind = name.split(".")
    if "embedding" in kind or "unembedding" in kind:
        return 0.02
    if kind[-2] in {"out", "down"}:
        return 0.0
    return float(shape[-1] ** -0.5)
