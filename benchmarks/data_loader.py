"""The data loader beside mosaicml-streaming and grain: its rate, its time to a first batch, what it serves of bad data.

    python benchmarks/data_loader.py [--quick] [--peers .peers/bin/python]

Writes `benchmarks/results/data_loader.json`. Ours and the peers read the same tokens in turn, round by round, and
the best round of each counts: other processes only ever slow one down. The peers (`data_loader_peers.py`) run in
their own interpreter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from data_loader_peers import BATCH, N_SAMPLES, SAMPLE, SEQUENCE, flip_byte, rate
from numpy.typing import NDArray
from result import Row, row, write

from bushcraft.data.loader import Loader, open_source, order_source
from bushcraft.data.manifest import DatasetManifest, read_manifest, split_from_packs, write_manifest
from bushcraft.data.order import Order
from bushcraft.errors import CorruptObjectError
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import FRAME_BYTES, MAGIC, PackEntry, PackWriter

PEERS = Path(__file__).with_name("data_loader_peers.py")
DOCUMENT = 900
"""Tokens of a document in the test of the rate."""
SEPARATOR = 0
CACHE_BYTES = 1 << 30
PACK_TOKENS = 1 << 27
"""A pack of 256 MiB, for the time to the first batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute's version")
    parser.add_argument("--peers", type=Path, default=Path(".peers/bin/python"), help="the peers' interpreter")
    parser.add_argument("--first-batch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_batch:
        print(json.dumps(open_and_read(*options.first_batch)))
        return
    peers = options.peers if options.peers.exists() else None
    if peers is None:
        print(f"peers not installed ({options.peers}): run make peers. Their figures are left out.")
    rows: list[Row] = []
    for part in (throughput, first_batch, integrity):
        with tempfile.TemporaryDirectory() as root:
            rows += part(Path(root), peers, options.quick)
    write("data_loader", rows, options.quick)


# Rate


def throughput(root: Path, peers: Path | None, quick: bool) -> list[Row]:
    """Shuffled batches of `BATCH` sequences over one epoch, all of it in the page cache."""
    n_tokens, rounds = (1 << 23, 3) if quick else (1 << 25, 5)
    tokens = np.random.default_rng(0).integers(1, 50_000, n_tokens, dtype=np.uint16)
    tokens[::DOCUMENT] = SEPARATOR
    np.save(root / "tokens.npy", tokens.reshape(-1, SEQUENCE))
    depot = LocalDepot.create(root / "depot")
    write_dataset(depot, "tokens", [write_pack(depot, tokens)])
    others = [Peer(peers, name, root) for name in ("streaming", "grain")] if peers else []

    loader, copy = open_loader(depot, "tokens"), np.ones_like(tokens)
    rate(batches(loader))  # fills the cache
    warm, cold, limit = [], [], []
    for _ in range(rounds):
        for _ in range(5):  # five of ours take less time than one of a peer's
            begin = time.perf_counter()
            np.copyto(copy, tokens)
            limit.append(n_tokens / (time.perf_counter() - begin))
            warm.append(rate(batches(loader)))
        cold.append(rate(batches(open_loader(depot, "tokens"))))
        for peer in others:
            peer.measure()

    def million(claim: str, ours: list[float], **more: Any) -> Row:
        return row(claim, "million tokens/s", max(ours) / 1e6, limit=max(limit) / 1e6, **more)

    claim = "verified, shuffled, packed batches with segments, one process, warm"
    rows = [million(claim, warm, at_least=200, peer=p.best / 1e6, peer_name=p.name) for p in others]
    rows = rows or [million(claim, warm, at_least=200)]
    for peer in others:
        peer.close()
    return [*rows, million("the same in the first epoch: each frame read (page cache) and verified", cold)]


def batches(loader: Loader) -> Iterator[NDArray[Any]]:
    """One epoch; `Rows.pieces` beside the tokens are the segments."""
    n_sequences = loader.order.sources[0].n_sequences
    return (loader.rows(begin, min(begin + BATCH, n_sequences)).tokens for begin in range(0, n_sequences, BATCH))


class Peer:
    """A peer that measures its rate whenever it is asked to."""

    def __init__(self, interpreter: Path, name: str, root: Path) -> None:
        command = [interpreter, PEERS, name, root]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = str(self._answer())
        self.best = 0.0

    def measure(self) -> None:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        self.best = max(self.best, self._answer())

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def ask(peers: Path, *arguments: object) -> Any:
    """One answer of `data_loader_peers.py`."""
    command = [str(peers), str(PEERS), *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


# Time to the first batch


def first_batch(root: Path, peers: Path | None, quick: bool) -> list[Row]:
    """Open and read 8 rows in a fresh process; a table of packs that names one pack many times makes any size."""
    depot = LocalDepot.create(root)
    entry = write_pack(depot, np.random.default_rng(0).integers(1, 50_000, PACK_TOKENS, dtype=np.uint16))
    powers = [6, 8, 10] if quick else [6, 7, 8, 9, 10]
    for power in powers:
        write_dataset(depot, f"1e{power}", [entry] * -(-(10**power) * SEQUENCE // PACK_TOKENS))
    times: dict[tuple[int, int], list[tuple[float, float]]] = {(p, at): [] for p in powers for at in (0, 10**p // 2)}
    for _ in range(3 if quick else 5):
        for (power, at), measured in times.items():
            command = [sys.executable, __file__, "--first-batch", root, f"1e{power}", str(at)]
            begin = time.monotonic()
            taken, end = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            measured.append((taken, end - begin))

    def slowest(power: int, which: int) -> float:
        """Best of the rounds at position 0 or in the middle, whichever is slower."""
        return max(min(t[which] for t in times[power, at]) for at in (0, 10**power // 2))

    rows = []
    for power in powers:
        plan: dict[str, Any] = {}
        if peers and power <= (6 if quick else 7):
            plan["peer"] = 1e3 * min(ask(peers, "plan", 10**power) for _ in range(2))
            plan["peer_name"] = "mosaicml-streaming's plan for resuming, alone"
        rows.append(row(f"open and first batch of 8 rows of 10^{power} samples", "ms", 1e3 * slowest(power, 0), **plan))
    for which, claim in enumerate(("open and first batch", "the same from the start of the process")):
        growth = slowest(10, which) / slowest(6, which)
        rows.append(row(f"{claim}: 10^10 samples ÷ 10^6", "×", growth, at_most=1.5))
    return rows


def open_and_read(root: str, name: str, position: str) -> tuple[float, float]:
    """Seconds from the path of a depot to 8 rows; the monotonic clock, which is one for the machine, at their end."""
    import numpy.ma  # noqa: F401 - numpy's unique imports it when first called; no import is to be timed

    begin = time.monotonic()
    open_loader(LocalDepot.open(Path(root)), name).rows(int(position), int(position) + 8)
    end = time.monotonic()
    return end - begin, end


# Integrity


def integrity(root: Path, peers: Path | None, quick: bool) -> list[Row]:  # noqa: ARG001 - quick as it is
    """Flip one byte on the disk; then ask for every sequence, start again and ask again."""
    depot = LocalDepot.create(root / "depot")
    entry = write_pack(depot, np.repeat(np.arange(1, N_SAMPLES + 1, dtype=np.uint16), SAMPLE))
    write_dataset(depot, "tokens", [entry])
    running = open_loader(depot, "tokens", SAMPLE)
    running.sources[0].stream.rows(np.array([0]), SAMPLE)  # the first frame is touched while all is well
    frame = len(MAGIC) + 3 * FRAME_BYTES
    flip_byte(depot.path(entry.object), frame + FRAME_BYTES // 2)
    wrong = 0
    for loader in (running, open_loader(depot, "tokens", SAMPLE)):
        served_wrong, refused, error = ask_for_everything(loader)
        if not (entry.object in error and f"bytes {frame}-{frame + FRAME_BYTES}" in error):
            raise RuntimeError(f"the error does not name the pack and the bytes: {error!r}")
        print(f"ours: {served_wrong} wrong, {refused} of {N_SAMPLES} sequences refused. {error}")
        wrong += served_wrong
    theirs: dict[str, Any] = {}
    if peers:
        ask(peers, "write-flipped", root)
        starts = [ask(peers, "read", root) for _ in range(2)]
        for start in starts:
            print(f"mosaicml-streaming: {start['wrong']} wrong. {start['end']}")
        theirs = {"peer": sum(start["wrong"] for start in starts), "peer_name": "mosaicml-streaming, sha1 validated"}
    claim = f"wrong sequences served of {N_SAMPLES} after one byte was flipped, over two starts"
    return [row(claim, "sequences", wrong, at_most=0, **theirs)]


def ask_for_everything(loader: Loader) -> tuple[int, int, str]:
    """(wrong sequences served, sequences refused, the last refusal)."""
    wrong, refused, error = 0, 0, ""
    for position in range(N_SAMPLES):
        try:
            rows = loader.rows(position, position + 1)
        except CorruptObjectError as refusal:
            refused, error = refused + 1, str(refusal)
        else:
            wrong += bool((rows.tokens[0, :-1] != rows.samples.index[0] + 1).any())
    return wrong, refused, error


# Data sets


def write_pack(depot: LocalDepot, tokens: NDArray[np.uint16]) -> PackEntry:
    """A pack of documents that begin at each separator."""
    writer = PackWriter(depot, itemsize=2)
    bounds = [0, *(1 + np.flatnonzero(tokens[1:] == SEPARATOR)).tolist(), len(tokens)]
    for begin, end in pairwise(bounds):
        writer.add(tokens[begin:end], f"document-{begin}", 4 * (end - begin))
    entry = writer.close()
    assert entry is not None
    return entry


def write_dataset(depot: LocalDepot, name: str, packs: list[PackEntry]) -> None:
    splits = {"train": split_from_packs(depot, packs)}
    write_manifest(depot, DatasetManifest(name, depot.put_bytes(b"{}"), "none", 50_000, SEPARATOR, 2, splits))


def open_loader(depot: LocalDepot, name: str, sequence_length: int = SEQUENCE) -> Loader:
    source = open_source(depot, name, read_manifest(depot, name)[1], CACHE_BYTES)
    order = Order((order_source(source, sequence_length),), seed=1, weights=(1.0,), global_batch_size=BATCH)
    return Loader((source,), order, sequence_length)


if __name__ == "__main__":
    main()
