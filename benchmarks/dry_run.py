"""The dry run's estimate beside what real ranks on this machine hold and send.

    python benchmarks/dry_run.py [--quick]

Peaks: the estimate over the bytes alive by the records of torch's CPU allocator, of the second step of rank 0. Traffic:
estimated bytes over those counted in the real step, over all mesh axes; they have to be equal axis by axis.
"""

import argparse

from measured_step import measure
from result import Row, write

from bushcraft.parallel.layout import Layout
from bushcraft.parallel.parallel_model import Settings
from bushcraft.train.dry_run.estimate import simulate
from bushcraft.train.recipe import Recipe
from bushcraft.train.resolve import load_recipe

LAYOUTS = (Layout(), Layout(shard=2), Layout(tensor=2), Layout(shard=2, tensor=2), Layout(context=2))
MODEL = ("n_layers=6", "d_model=256", "n_heads=8", "n_kv_heads=4", "d_ff=768", "vocab_size=4096")
RUN = ("global_batch_size=8", "microbatch_size=2", "sequence_length=512")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three layouts")
    quick = parser.parse_args().quick
    overrides = [f"model.{text}" for text in MODEL] + [f"run.{text}" for text in RUN] + ['optimizer.name="adamw"']
    recipe = load_recipe("tiny", overrides).recipe
    write("dry_run", [row for layout in LAYOUTS[: 3 if quick else None] for row in compare(recipe, layout)], quick)


def compare(recipe: Recipe, layout: Layout) -> list[Row]:
    """Two rows of a layout."""
    settings = Settings(precision="fp32", z_loss=recipe.optimizer.z_loss)
    estimate, measured = simulate(recipe, layout, settings, device="cpu"), measure(recipe, layout, settings)
    sent = sum(sum(of_axes.values()) for of_axes in measured["sent"].values())
    ratio = estimate.peak / measured["peak"]
    return [
        Row(
            claim=f"peak memory of rank 0, {layout}",
            unit="bytes",
            ours=estimate.peak,
            peer=measured["peak"],
            peer_name="allocator's records of a real step",
            ratio=round(ratio, 4),
            target="ratio within 5 % of 1",
            holds=abs(ratio - 1) <= 0.05,
        ),
        Row(
            claim=f"bytes sent by rank 0 in a step, {layout}",
            unit="bytes",
            ours=estimate.sent_bytes,
            peer=sent,
            peer_name="collectives of a real step",
            ratio=round(estimate.sent_bytes / sent, 4) if sent else None,
            target="equal on each axis",
            holds=estimate.sent == measured["sent"],
        ),
    ]


if __name__ == "__main__":
    main()
