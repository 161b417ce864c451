"""Kill training at random moments with SIGKILL and resume it: do the bits survive?

Each run of a shortened recipe is killed once or twice, at moments drawn (seeded) over the time that an
uninterrupted run takes, wherever it then is: importing, loading, stepping, saving, evaluating. Then the same
command is given until it ends. The claim holds for a run if every tensor of weights and optimizer has the bits
of the uninterrupted run, all receipts agree, every published checkpoint verifies and the ledger reads whole.

    python benchmarks/kill_resume.py [--quick] [--runs N] [--seed S]
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from result import row, write

from bushcraft.checkpoint.newest import checkpoints, verify
from bushcraft.ledger.goodput import goodput
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare

SETTINGS = ("run.threads=1", "checkpoint.every_sequences=32", "evaluate.every_sequences=160", "model.vocab_size=1024")
PARALLEL = 2
TEXT = Path(__file__).parents[1] / "src"
"""The corpus: this repository's own source."""


@dataclass(frozen=True)
class Outcome:
    """What became of one killed run."""

    kills: int
    identical: bool
    checkpoints: int
    redone_seconds: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="3 runs in place of 25")
    options.add_argument("--runs", type=int, default=25)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    n_runs = 3 if chosen.quick else chosen.runs
    with tempfile.TemporaryDirectory() as directory:
        store = Store.create(Path(directory) / "store")
        command("data", "build", "python", str(TEXT), "--vocab-size", "1024", store=store)
        with ThreadPoolExecutor(PARALLEL) as pool:  # the kills are drawn over the time of a run beside another
            seconds, _ = pool.map(lambda name: train(store, name), ["reference", "twin"])
            outcomes = list(
                pool.map(
                    lambda i: kill_and_resume(store, f"killed-{i}", chosen.seed * 1000 + i, seconds), range(n_runs)
                )
            )
        assert compare(store, "reference", "twin").identical, "two uninterrupted runs differ: nothing to compare with"
    report(outcomes, seconds, chosen.quick)


def train(store: Store, name: str) -> float:
    """Train a run to its end; seconds."""
    began = time.monotonic()
    settings = [part for setting in (*SETTINGS, f"run.name={name}") for part in ("--set", setting)]
    command("train", "smoke", *settings, store=store)
    return time.monotonic() - began


def kill_and_resume(store: Store, name: str, seed: int, seconds: float) -> Outcome:
    """Kill a run at one or two random moments, let it end, and compare it with the reference."""
    rng = random.Random(seed)
    kills = 0
    settings = [part for setting in (*SETTINGS, f"run.name={name}") for part in ("--set", setting)]
    for kill in range(rng.randint(1, 2)):
        # The first comes before the run can have ended, so that every run is a killed one.
        latest = 0.8 if kill == 0 else 1.0
        process = start("train", "smoke", *settings, store=store)
        try:
            process.wait(rng.uniform(0.1, latest) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if process.stdout:
            process.stdout.close()
    train(store, name)
    events = read_ledger(store.runs / name, name)
    saved = checkpoints(store.depot, name)
    for _, checkpoint in saved:
        verify(store.depot, checkpoint)
    found = compare(store, "reference", name)
    outcome = Outcome(kills, found.identical, len(saved), goodput(events).seconds.get("redone", 0.0))
    print(f"{name}: killed {kills} times, {'bit-identical' if outcome.identical else found}", flush=True)
    return outcome


def start(*arguments: str, store: Store) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "bushcraft.cli", *arguments, "--store", str(store.root)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def command(*arguments: str, store: Store) -> None:
    """Run a command to its end, which must be a good one."""
    process = start(*arguments, store=store)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{arguments} ended with {process.returncode}:\n{output.decode()}")


def report(outcomes: list[Outcome], seconds: float, quick: bool) -> None:
    """Print and write what was measured."""
    identical, kills = sum(o.identical for o in outcomes), sum(o.kills for o in outcomes)
    redone = sum(o.redone_seconds for o in outcomes) / max(1, kills)
    print(f"{identical} of {len(outcomes)} bit-identical after {kills} kills; {redone:.2f} s of steps redone a kill")
    rows = [
        row(
            f"runs bit-identical to the uninterrupted one after {kills} SIGKILLs at random moments of "
            f"{sum(o.kills > 0 for o in outcomes)} of them",
            "runs",
            identical,
            limit=len(outcomes),
            at_least=len(outcomes),
        ),
        row(f"steps made again after a kill (a run takes {seconds:.1f} s)", "s", redone),
    ]
    write("kill_resume", rows, quick)


if __name__ == "__main__":
    main()
