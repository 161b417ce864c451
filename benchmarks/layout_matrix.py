"""Every model at every layout, and from any layout to any other: does a layout change anything?

    python benchmarks/layout_matrix.py [--quick]

Real ranks, processes that meet by gloo, train a small model in fp32. At each layout they must read the same sequences
(receipts), begin with the same bits in every weight, and have the losses of a single process within 2e-5. Then runs
are killed by SIGKILL after ten steps and a bit, and go on at another layout: receipts are those of the run that was
never killed, weights and optimizer are what was saved, bit for bit, and losses agree. The figures are the largest
relative differences of a loss; of a run that goes on at its own layout, tensors that differ at the end.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from result import Row, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.train.layouts import BATCH, LAYOUTS, MODELS, STEPS, Digests, Found, cannot, difference, run
from tests.train.small_store import small_store

TOLERANCE = 2e-5
MUON_TOLERANCE = 2e-3
PEER = "one process"
EVERY = {
    **LAYOUTS,
    "pipe 2, two stages a rank": {"pipe": 2, "stages_per_rank": 2},
    "tensor 2 × context 2": {"tensor": 2, "context": 2},
}
RESUMED = ("one rank", "shard 2", "shard 3", "tensor 2", "context 2", "shard 2 × tensor 2", "pipe 2")
QUICK = ("one rank", "shard 3", "tensor 2")
DEEPER = ("model.n_layers=4",)
"""So that a pipeline can have four stages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model at three layouts, and from each to each")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "store"
        small_store(root)
        rows = [*matrix(root, quick), *any_to_any(root, quick)]
    write("layout_matrix", rows, quick)


def matrix(root: Path, quick: bool) -> list[Row]:
    """Each model at each layout, and one under Muon."""
    rows = []
    models = {name: (*settings, *DEEPER) for name, settings in MODELS.items()}
    cases = [(model, settings, TOLERANCE) for model, settings in models.items()]
    cases.append(("decoder, causal, Muon", (*DEEPER, "optimizer.name=muon"), MUON_TOLERANCE))
    for n, (model, settings, tolerance) in enumerate(cases[:1] if quick else cases):
        alone = run(root, f"matrix-{n}-alone", settings, {})
        for i, (layout, axes) in enumerate(EVERY.items()):
            if axes and not cannot(model, layout) and (layout in QUICK or not quick):
                found = run(root, f"matrix-{n}-{i}", settings, axes)
                rows.append(row(f"{model}, {layout}: losses of {STEPS} steps", found, alone, tolerance))
                check(rows[-1].claim, found.opened == alone.opened, "other first weights")
    return rows


def any_to_any(root: Path, quick: bool) -> list[Row]:
    """A run of each layout, killed, goes on at each."""
    rows = []
    layouts = QUICK if quick else RESUMED
    alone = run(root, "alone", (), {})
    for before in layouts:
        kept, straight = root.parent / "killed", run(root, f"straight-{layouts.index(before)}", (), LAYOUTS[before])
        shutil.rmtree(kept, ignore_errors=True)
        small_store(kept)
        run(kept, "run", (), LAYOUTS[before], kill_at_step=STEPS // 2 + 2)
        saved = saved_digests(kept)
        for after in layouts:
            place = root.parent / "resumed"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(kept, place)
            found = run(place, "run", (), LAYOUTS[after])
            rows.append(row(f"killed at {before}, went on at {after}: losses", found, alone, TOLERANCE))
            check(rows[-1].claim, found.opened == saved, "other weights or optimizer than were saved")
            if before == after:
                check(rows[-1].claim, found.closed == straight.closed, "other bits at its own layout")
    return rows


def saved_digests(store: Path) -> Digests:
    """What one rank finds in the checkpoint, read in a copy of the store."""
    place = store.with_name("read")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(store, place)
    found = run(place, "run", (), {}).opened
    assert found.position == STEPS * BATCH // 2
    return found


def row(claim: str, found: Found, alone: Found, tolerance: float) -> Row:
    """Both must have read the same."""
    check(claim, found.receipts == alone.receipts, "other sequences")
    worst = difference(found.losses, alone.losses)
    print(f"{claim}: {worst:.2g}", flush=True)
    return Row(
        claim=claim,
        unit="largest relative difference of a loss",
        ours=float(f"{worst:.3g}"),
        peer=0.0,
        peer_name=PEER,
        limit=None,
        ratio=None,
        target=f"≤ {tolerance:g}",
        holds=worst <= tolerance,
    )


def check(claim: str, holds: bool, otherwise: str) -> None:
    """What is right or wrong ends the benchmark where it is wrong."""
    if not holds:
        raise SystemExit(f"{claim}: {otherwise}")


if __name__ == "__main__":
    main()
