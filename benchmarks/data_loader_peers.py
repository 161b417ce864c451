"""The peers' half of `data_loader.py`: each as its users would use it, run by the interpreter of the peers.

.peers/bin/python benchmarks/data_loader_peers.py streaming|grain|plan|write-flipped|read …
"""

import json
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEQUENCE = 1024
BATCH = 512
N_SAMPLES, SAMPLE = 200, 4096
"""For the test of integrity: sample i holds nothing but the token i + 1."""


def rate(batches: Iterable[Any]) -> float:
    """Tokens a second."""
    begin = time.perf_counter()
    n_tokens = sum(len(batch) for batch in batches) * SEQUENCE
    return n_tokens / (time.perf_counter() - begin)


def flip_byte(path: Path, at: int) -> None:
    """Invert the bits of one byte on the disk."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def streaming(root: str) -> Iterator[Any]:
    """mosaicml-streaming's rate: local MDS shards of bytes, its own data loader, no workers."""
    import torch

    mosaic = import_streaming()
    with mosaic.MDSWriter(out=f"{root}/mds", columns={"tokens": "bytes"}) as writer:
        for sample in np.load(f"{root}/tokens.npy", mmap_mode="r"):
            writer.write({"tokens": sample.tobytes()})
    options = {"shuffle": True, "num_canonical_nodes": 1, "batch_size": BATCH}
    dataset = mosaic.StreamingDataset(local=f"{root}/mds", **options)

    def collate(samples: list[dict[str, bytes]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.frombuffer(sample["tokens"], np.uint16) for sample in samples]))

    loader = mosaic.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=collate)
    return answers(f"mosaicml-streaming {mosaic.__version__}", lambda: rate(loader))


def grain(root: str) -> Iterator[Any]:
    """grain's rate: a memory-mapped array, both of its ways to iterate in one process; the faster one counts."""
    import grain

    dataset = grain.MapDataset.source(np.load(f"{root}/tokens.npy", mmap_mode="r")).shuffle(seed=1).batch(BATCH)
    return answers(f"grain {grain.__version__}", lambda: max(rate(dataset), rate(dataset.to_iter_dataset())))


def answers(name: str, measure: Callable[[], float]) -> Iterator[Any]:
    """Who is there, once it is warm; then one measurement for each line on stdin."""
    measure()
    yield name
    for _ in sys.stdin:
        yield measure()


def plan(size: str) -> Iterator[float]:
    """Seconds of mosaicml-streaming's plan for resuming in mid-epoch on 8 nodes of 8 ranks with 4 workers."""
    import_streaming()
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    shards = np.full(int(size) // 8192, 8192)
    n_samples = int(shards.sum())
    begin = time.perf_counter()
    ids = get_partitions("relaxed", n_samples, 8, 8, 8, 4, 8, n_samples // 2)
    shuffled = get_shuffle("py1e", shards, 8, 9176, 1, 1 << 18)
    np.where(ids == -1, -1, shuffled[ids])
    yield time.perf_counter() - begin


def write_flipped(root: str) -> Iterator[str]:
    """Write the samples as MDS with hashes, then flip one byte of the second shard."""
    mosaic = import_streaming()
    remote = f"{root}/remote"
    with mosaic.MDSWriter(out=remote, columns={"tokens": "bytes"}, hashes=["sha1"], size_limit=1 << 18) as writer:
        for i in range(N_SAMPLES):
            writer.write({"tokens": np.full(SAMPLE, i + 1, np.uint16).tobytes()})
    shard = sorted(Path(remote).glob("*.mds"))[1]
    flip_byte(shard, shard.stat().st_size // 2)
    yield "written"


def read(root: str) -> Iterator[dict[str, Any]]:
    """Start, read every sample with hashes validated: how many were wrong, and how it ended."""
    mosaic = import_streaming()
    mosaic.base.util.clean_stale_shared_memory()
    options = {"validate_hash": "sha1", "shuffle": False, "batch_size": 1, "num_canonical_nodes": 1}
    dataset = mosaic.StreamingDataset(remote=f"{root}/remote", local=f"{root}/local", **options)
    wrong, end = 0, "read to the end"
    try:
        for i in range(N_SAMPLES):
            wrong += bool((np.frombuffer(dataset[i]["tokens"], np.uint16) != i + 1).any())
    except Exception as error:  # whatever it raises is the outcome
        end = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    yield {"wrong": wrong, "end": end}


def import_streaming() -> types.ModuleType:
    """mosaicml-streaming wants two names of torchvision at import; they serve images and are stubbed here."""
    import transformers.feature_extraction_utils  # noqa: F401 - it looks for the real torchvision: let it, first

    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


if __name__ == "__main__":
    commands = {"streaming": streaming, "grain": grain, "plan": plan, "write-flipped": write_flipped, "read": read}
    for found in commands[sys.argv[1]](*sys.argv[2:]):
        print(json.dumps(found), flush=True)
