"""Four kinds of language model of one size, on one corpus, in the same few minutes: what does each of them learn?

A causal decoder, a prefix decoder, an encoder-decoder that fills in spans and one that learns UL2's denoisers are
trained from their recipes to the end, each timed from the start of its command. A shorter run of each is killed by
SIGKILL in the middle, resumed by the same command, and compared with one that was not, bit by bit. The losses of
different objectives are not comparable: each of them is nats a target of its own. The table for the documentation is
printed at the end.

    python benchmarks/architectures.py [--quick] [--store DIR]
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from result import Row, row, write

from bushcraft.data.manifest import read_manifest
from bushcraft.errors import DataError
from bushcraft.ledger.events import Event
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare

RECIPES = {
    "tiny": "causal decoder",
    "tiny-prefix": "prefix decoder",
    "encdec-tiny-span": "encoder-decoder, span corruption",
    "encdec-tiny-ul2": "encoder-decoder, UL2",
}
MINUTES = {"encdec-tiny-ul2": 1.7}
"""Of training; the evaluation at the end, which reads each window's context through the encoder, takes longer there."""
OTHER_MINUTES = 2.2
LIMIT_MINUTES = 3.0
SHORT = ("run.sequences=48", "checkpoint.every_sequences=8", "data.sources.python.dataset=code")
CODE = Path(__file__).parents[1] / "src"
POINTS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Where the curve is shown, as shares of the run; each is the mean over a twentieth of it."""


@dataclass(frozen=True)
class Trained:
    """What became of one recipe."""

    recipe: str
    seconds: float
    """Of the whole command."""
    curve: list[float]
    heldout_loss: float | None
    bits_per_byte: float | None
    sequences: int
    samples: list[dict[str, str]]
    resumed_identical: bool


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a fifth of the minutes")
    options.add_argument("--store", type=Path, help="a store that may have the data set `python` already")
    chosen = options.parse_args()
    share = 0.2 if chosen.quick else 1.0
    with tempfile.TemporaryDirectory() as directory:
        root = chosen.store or Path(directory) / "store"
        store = Store.open(root) if root.exists() else Store.create(root)
        build_data(store)
        found = [trained(store, recipe, share * MINUTES.get(recipe, OTHER_MINUTES)) for recipe in RECIPES]
    for each in found:
        for sample in each.samples:
            print(f"\n{each.recipe}: {sample['prompt']}⟶{sample['text']}")
    print("\n" + table(found))
    write("architectures", [r for each in found for r in rows(each)], chosen.quick)


def build_data(store: Store) -> None:
    """The default corpus, unless it is there; and for the killed runs a smaller one, with less to evaluate."""
    try:
        manifest = read_manifest(store.depot, "python")[1]
    except DataError:
        run("data", "build", "python", "--python", "--heldout", "0.025", "--heldout-mib", "2", store=store)
        manifest = read_manifest(store.depot, "python")[1]
    tokenizer = store.depot.root / "objects" / manifest.tokenizer[:2] / manifest.tokenizer[2:]
    run("data", "build", "code", str(CODE), "--tokenizer", str(tokenizer), "--heldout", "0.02", store=store)


def trained(store: Store, recipe: str, minutes: float) -> Trained:
    """Train a recipe to its end, and kill and resume a shorter run of it."""
    stamp = f"{time.time():.0f}"
    name = f"{recipe}-{stamp}"
    began = time.monotonic()
    train(store, recipe, name, f"run.minutes={minutes}")
    seconds = time.monotonic() - began
    train(store, recipe, f"straight-{name}", *SHORT)
    kill_in_the_middle(store, recipe, f"killed-{name}")
    train(store, recipe, f"killed-{name}", *SHORT)
    events = read_ledger(store.runs / name, name)
    evaluation = next(e for e in reversed(events) if e.type == "evaluation").data
    return Trained(
        recipe,
        seconds,
        curve([e.data["loss"] for e in events if e.type == "step"]),
        evaluation.get("objective_loss"),
        evaluation["bits_per_byte"],
        events[0].data["sequences"],
        next(e for e in reversed(events) if e.type == "finished").data["samples"],
        compare(store, f"straight-{name}", f"killed-{name}").identical,
    )


def kill_in_the_middle(store: Store, recipe: str, name: str) -> None:
    """Start the run and kill it when it has made half of its steps."""
    process = start("train", recipe, *settings(name, *SHORT), store=store)
    while process.poll() is None:
        if position(store, name) >= 24:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"{name} ended with {process.returncode} before it could be killed")


def position(store: Store, name: str) -> int:
    """Where the run is, by its ledger."""
    steps = [e for e in ledger_now(store, name) if e.type == "step"]
    return steps[-1].position if steps else 0


def ledger_now(store: Store, name: str) -> list[Event]:
    return read_ledger(store.runs / name, name) if (store.runs / name / "ledger.jsonl").exists() else []


def curve(losses: list[float]) -> list[float]:
    """The loss at `POINTS`; the first is that of the first step."""
    window = max(1, len(losses) // 20)
    ends = [max(window, round(point * len(losses))) for point in POINTS[1:]]
    return [losses[0], *(statistics.fmean(losses[end - window : end]) for end in ends)]


def rows(each: Trained) -> list[Row]:
    kind = RECIPES[each.recipe]
    claims = [
        row(f"{kind}: the whole command", "minutes", each.seconds / 60, at_most=LIMIT_MINUTES),
        row(f"{kind}: loss at the end, first step beside it", "nats/target", each.curve[-1], peer=each.curve[0],
            peer_name="first step", at_most=each.curve[0]),
        row(f"{kind}: killed by SIGKILL and resumed, bit-identical", "runs", int(each.resumed_identical), at_least=1),
    ]  # fmt: skip
    if each.bits_per_byte is not None:
        claims.append(row(f"{kind}: held-out text", "bits/byte", each.bits_per_byte))
    if each.heldout_loss is not None:
        claims.append(row(f"{kind}: held-out loss under its objective", "nats/target", each.heldout_loss))
    claims += [
        row(f"{kind}: loss at {point:.0%} of {each.sequences} sequences", "nats/target", loss)
        for point, loss in zip(POINTS, each.curve, strict=True)
    ]
    return claims


def table(found: list[Trained]) -> str:
    """The curves as a Markdown table."""
    lines = [
        "| recipe | " + " | ".join(f"{point:.0%}" for point in POINTS) + " | held out, bits/byte | minutes |",
        "|---|" + "---|" * (len(POINTS) + 2),
    ]
    for each in found:
        bits = "" if each.bits_per_byte is None else f"{each.bits_per_byte:.2f}"
        losses = " | ".join(f"{loss:.2f}" for loss in each.curve)
        lines.append(f"| `{each.recipe}` | {losses} | {bits} | {each.seconds / 60:.1f} |")
    return "\n".join(lines)


def settings(name: str, *chosen: str) -> list[str]:
    return [part for setting in (*chosen, f"run.name={name}") for part in ("--set", setting)]


def train(store: Store, recipe: str, name: str, *chosen: str) -> None:
    run("train", recipe, *settings(name, *chosen), store=store)


def start(*arguments: str, store: Store) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "bushcraft.cli", *arguments, "--store", str(store.root)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments: str, store: Store) -> None:
    """Run a command to its end, which must be a good one."""
    process = start(*arguments, store=store)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{arguments} ended with {process.returncode}:\n{output}")
    print(output, flush=True)


if __name__ == "__main__":
    main()
