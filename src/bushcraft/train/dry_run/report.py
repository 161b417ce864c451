"""`bushcraft train --dry-run`: what a person reads in ten seconds, and the same as JSON."""

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bushcraft.errors import RecipeError
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.parallel_model import Settings
from bushcraft.train.dry_run.estimate import Estimate
from bushcraft.train.dry_run.suggest import GPUS_PER_NODE, Suggestion, fits, heaviest, leaves_node, suggest
from bushcraft.train.recipe import Recipe

DEVICE_GIB = 80e9 / 2**30
"""Of an H100 with 80 GB."""
KINDS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "activations": "activations and work",
}


@dataclass(frozen=True)
class DryRun:
    """What was found about a layout, and which ones would fit where it does not."""

    recipe: Recipe
    estimate: Estimate
    device_bytes: int
    suggestions: list[Suggestion]

    @property
    def fits(self) -> bool:
        """Whether the device holds the layout asked for."""
        return fits(self.estimate, self.device_bytes)

    def to_json(self) -> str:
        """One object: the estimate, whether it fits, and the layouts that would."""
        return json.dumps(
            {
                "run": self.recipe.run.name,
                "world_size": self.estimate.layout.world_size,
                "device_bytes": self.device_bytes,
                "fits": self.fits,
                "estimate": self.estimate.to_data(),
                "would_fit": [estimate.to_data() for _, _, estimate in self.suggestions],
            },
            indent=2,
        )


def dry_run(
    recipe: Recipe,
    layout: Layout | None,
    settings: Settings | None = None,
    world_size: int | None = None,
    device_memory_gib: float = DEVICE_GIB,
) -> DryRun:
    """Of the layout or, if there is none, of the recipe's for so many ranks, or as many as it asks for.

    Precision "auto" is bf16 on such a device.

    Errors: `RecipeError` where the layout does not fit the ranks, the model or the batch.
    """
    layout = layout or recipe.parallel.layout(world_size or recipe.parallel.asked_ranks)
    if world_size not in (None, layout.world_size):
        raise RecipeError(
            f"{layout} is a layout of {layout.world_size} ranks, and --world-size is {world_size}",
            f"Use --world-size {layout.world_size}, or change parallel.*",
        )
    precision = "bf16" if recipe.run.precision == "auto" else recipe.run.precision
    settings = settings or recipe.parallel.settings(precision, recipe.optimizer.z_loss)
    device_bytes = int(device_memory_gib * 2**30)
    estimate = heaviest(recipe, layout, settings)
    others = [] if fits(estimate, device_bytes) else suggest(recipe, layout.world_size, device_bytes, settings=settings)
    return DryRun(recipe, estimate, device_bytes, others)


def print_dry_run(console: Console, found: DryRun, gpus_per_node: int = GPUS_PER_NODE) -> None:
    """The table of the heaviest rank, a line that says whether it fits, and what would."""
    estimate = found.estimate
    title = f"{found.recipe.run.name}: {estimate.layout}, {estimate.layout.world_size} ranks, one step of rank "
    table = Table("", "bytes", "of the device", title=title + str(estimate.rank), title_justify="left")
    for kind, name in KINDS.items():
        _add(table, name, getattr(estimate, kind), found.device_bytes)
    _add(table, "peak", estimate.peak, found.device_bytes, "bold")
    table.add_section()
    for axes, by_collective in sorted(estimate.sent.items(), key=lambda item: -sum(item[1].values())):
        most = max(by_collective, key=lambda collective: by_collective[collective])
        where = "between nodes" if leaves_node(estimate.layout, axes, gpus_per_node) else "inside of a node"
        table.add_row(f"sent over {axes}, {where}", _size(sum(by_collective.values())), f"most by {most}")
    table.add_section()
    table.add_row("operations", f"{estimate.flops:.3g} FLOP", f"{estimate.flops * estimate.layout.world_size:.3g} all")
    console.print(table)
    console.print(_verdict(found), highlight=False)
    for layout, settings, other in found.suggestions:
        told = f"  {layout}: {_size(other.peak)}, {_size(other.sent_bytes)} sent; {_set(layout, settings)}"
        console.print(told, highlight=False)


def _add(table: Table, name: str, n_bytes: int, device_bytes: int, style: str | None = None) -> None:
    table.add_row(name, _size(n_bytes), f"{n_bytes / device_bytes:.1%}", style=style)


def _verdict(found: DryRun) -> str:
    peak, device = _size(found.estimate.peak), _size(found.device_bytes)
    if found.fits:
        return f"fits: {peak} of {device}, and what CUDA and NCCL take"
    held: dict[str, Any] = {name: getattr(found.estimate, kind) for kind, name in KINDS.items()}
    largest = max(held, key=lambda name: held[name])
    told = f"does not fit: {peak} of {device}, most of it {largest}"
    return f"{told}. These would:" if found.suggestions else f"{told}. No layout of so many ranks was found that does"


def _set(layout: Layout, settings: Settings) -> str:
    """How to ask for it."""
    axes = ("pipe", "replicate", "shard", "context", "tensor")
    values: dict[str, Any] = {axis: getattr(layout, axis) for axis in axes if getattr(layout, axis) > 1}
    values["recompute"] = settings.recompute
    if settings.reduce_each_microbatch:
        values["reduce_each_microbatch"] = "true"
    return " ".join(f"--set parallel.{key}={value}" for key, value in values.items())


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    raise AssertionError
