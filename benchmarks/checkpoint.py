"""Checkpoints at the speed of the disk: durable saves, verified loads, loads at another number of ranks, and how long
a step waits, beside raw writes, torch's distributed checkpoints (DCP), safetensors and torch_checkpointing.

    .peers/bin/python benchmarks/checkpoint.py [--quick] [--folder DIR]

DIR is on the disk that is measured. Contenders take turns, a figure is the median of their turns. Bushcraft hashes
every chunk (xxh3-128) and every object (BLAKE3) when it saves, and checks every chunk when it loads; no other
contender does.
"""

import argparse
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from checkpoint_reshard import reshard_seconds
from checkpoint_save_load import Seconds, load_seconds, save_seconds
from checkpoint_stall import stall_seconds
from checkpoint_state import GIB, filled, n_bytes, quickest, rate, shapes
from result import Row, row, write

N_LAYERS, WIDTH = 11, 1024


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small state and few rounds")
    parser.add_argument("--folder", type=Path, help="where to write: on the disk that is measured")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sizes = shapes(3 if options.quick else N_LAYERS, WIDTH)
    state = filled(sizes)
    rounds = 3 if options.quick else 7
    folder = Path(tempfile.mkdtemp(prefix="bushcraft-checkpoint-", dir=options.folder))
    try:
        rows = save_rows(n_bytes(state), save_seconds(state, folder / "save", rounds))
        rows += load_rows(n_bytes(state), *load_seconds(state, folder / "load", rounds))
        rows += stall_rows(n_bytes(state), stall_seconds(state, folder / "stall", rounds))
        del state
        rows += reshard_rows(sizes, reshard_seconds(sizes, folder / "reshard", rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write("checkpoint", rows, options.quick)


def save_rows(size: int, seconds: Seconds) -> list[Row]:
    """Against the same bytes written raw, by the kernel's cache and past it, and against each peer."""
    raw = [name for name in seconds if name.startswith("raw")]
    ours, limit = rate(size, seconds["bushcraft"]), rate(size, seconds[quickest(seconds, "raw")])
    what = f"durable save of {gib(size)} to a local disk"
    peers = [quickest(seconds, "torch DCP"), "safetensors + fsync, no hashes"]
    return [
        *(
            share(
                f"{what}, as a share of {name} ({rate(size, seconds[name]):.2f} GiB/s)",
                ours / rate(size, seconds[name]),
                at_least=0.9,
            )
            for name in raw
        ),
        *(throughput(what, ours, peer, rate(size, seconds[peer]), limit) for peer in peers),
    ]


def load_rows(size: int, warm: Seconds, cold: Seconds) -> list[Row]:
    """Beside each peer, from the kernel's copies of the files and from the disk."""
    rows = []
    for where, seconds in (("files in memory", warm), ("files on the disk", cold)):
        ours = rate(size, seconds["bushcraft"])
        what = f"load of {gib(size)} into a run's tensors, {where}"
        rows += [throughput(what, ours, peer, rate(size, seconds[peer]), None) for peer in others(seconds)]
        dcp = rate(size, seconds["torch DCP"])
        rows.append(share(f"{what}, bushcraft ÷ torch DCP", ours / dcp, at_least=1.5))
    return rows


def reshard_rows(sizes: dict[str, tuple[int, ...]], seconds: Seconds) -> list[Row]:
    """Three ranks of what four ranks have saved."""
    size = 4 * sum(torch.Size(shape).numel() for shape in sizes.values())
    ours, dcp = (rate(size, seconds[who]) for who in ("bushcraft", "torch DCP"))
    what = f"load of {gib(size)} by 3 ranks, saved by 4 (gloo, files in memory)"
    return [throughput(what, ours, "torch DCP", dcp, None)]


def stall_rows(size: int, seconds: Seconds) -> list[Row]:
    """How long a step waits for a save, in copies of the state in memory, beside each peer."""
    copy = statistics.median(seconds["memcpy"])
    waits = {who: statistics.median(times) / copy for who, times in seconds.items()}
    what = f"a step's wait for an asynchronous save of {gib(size)}, in memcpys of it ({copy:.3f} s)"
    return [
        row(what, "×", waits["bushcraft"], peer=waits[who], peer_name=who, limit=1, at_most=1.2)
        for who in others(seconds)
        if who != "memcpy"
    ]


def others(seconds: Seconds) -> Sequence[str]:
    """All contenders but us."""
    return [who for who in seconds if who != "bushcraft"]


def throughput(what: str, ours: float, peer_name: str, peer: float, limit: float | None) -> Row:
    """GiB/s beside a peer."""
    return row(what, "GiB/s", ours, peer=peer, peer_name=peer_name, limit=limit)


def share(what: str, ratio: float, at_least: float | None = None) -> Row:
    """A quotient, and whether it is as large as it should be."""
    return row(what, "×", ratio, at_least=at_least)


def gib(size: int) -> str:
    """The size as claims say it."""
    return f"{size / GIB:.2f} GiB"


if __name__ == "__main__":
    main()
