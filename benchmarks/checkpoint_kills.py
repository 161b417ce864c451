"""Saves are killed with SIGKILL at seeded moments: is the newest durable checkpoint found, and nothing else loaded?

A save dies before one of its operations on the file system (open, write, fsync, rename, mkdir, the reference) or at any
moment by the clock, and the next goes on in what it left; in one directory, in two, and in two of which one follows.

    python benchmarks/checkpoint_kills.py [--quick] [--trials N] [--seed S]
"""

import argparse
import sys
import tempfile
from pathlib import Path

from result import Row, row, write

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.checkpoint.killed_save import LOCAL, ONE_FOLLOWS, TWO_COPIES, Trial, trials

SHARES = {LOCAL: 0.6, TWO_COPIES: 0.2, ONE_FOLLOWS: 0.2}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="200 trials in place of 10,000")
    options.add_argument("--trials", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    write("checkpoint_kills", kills(200 if chosen.quick else chosen.trials, chosen.seed), chosen.quick)


def kills(n: int, seed: int) -> list[Row]:
    """About `n` killed saves, as rows of a benchmark."""
    found: list[Trial] = []
    with tempfile.TemporaryDirectory() as directory:
        for number, (setup, share) in enumerate(SHARES.items()):
            root = Path(directory) / str(number)
            root.mkdir()
            endings = ("operation", "operation", "clock")
            found += trials(round(n * share), seed * len(SHARES) + number, setup, root, endings)
    n_wrong = sum(not trial.right or trial.passed_over > 0 for trial in found)
    n_newest = sum(trial.newest_durable for trial in found)
    return [
        row(f"{len(found)} killed saves: a checkpoint loaded, or published, that is not whole", "", n_wrong, at_most=0),
        row(
            f"{len(found)} killed saves: the newest durable checkpoint found",
            "",
            n_newest,
            limit=len(found),
            at_least=len(found),
        ),
    ]


if __name__ == "__main__":
    main()
