"""What `checkpoint.py` saves, and how it takes turns: a run's state, a folder that is emptied between the turns."""

import os
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

GIB = 2**30
KINDS = ("model", "optimizer/exp_avg", "optimizer/exp_avg_sq")
"""The weights and AdamW's two averages, all fp32."""


def shapes(n_layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a gated decoder's state: matrices of some MiB, and vectors."""
    hidden = width * 11 // 4
    layer = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    layer |= {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
    layer |= {"attention_norm": (width,), "mlp_norm": (width,)}
    names = {f"layers.{i}.{name}": shape for i in range(n_layers) for name, shape in layer.items()}
    return {f"{kind}/{name}": shape for kind in KINDS for name, shape in names.items()}


def filled(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random numbers, the same for every process."""
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=random) for name, shape in sizes.items()}


def n_bytes(state: Mapping[str, Tensor]) -> int:
    """Of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def empty(folder: Path) -> None:
    """Remove what was written there, and wait until the disk has nothing to do."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()


def forget(folder: Path) -> None:
    """Have the kernel drop its copies of the files: who reads them next reads the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_turns(
    contenders: Mapping[str, Callable[[], None]], rounds: int, before: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Seconds of each contender, a list of `rounds`; who is first differs from round to round.

    `before` is not measured. What else the machine does hits all alike.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in range(rounds):
        first = n % len(names)
        for name in names[first:] + names[:first]:
            before(name)
            began = perf_counter()
            contenders[name]()
            seconds[name].append(perf_counter() - began)
            print(f"{name}: {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def rate(size: int, seconds: Sequence[float]) -> float:
    """GiB/s of the median turn."""
    return size / GIB / statistics.median(seconds)


def quickest(seconds: Mapping[str, Sequence[float]], prefix: str) -> str:
    """The contender whose name begins so with the smallest median."""
    return min((name for name in seconds if name.startswith(prefix)), key=lambda name: statistics.median(seconds[name]))
