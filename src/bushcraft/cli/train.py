"""`bushcraft train`: train a recipe's run, or go on with it."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json
from bushcraft.errors import RecipeError
from bushcraft.parallel.launch import run_ranks
from bushcraft.parallel.world import World, world_of

if TYPE_CHECKING:  # torch takes seconds to import: commands that need no model do without
    from rich.console import Console

    from bushcraft.store.workspace import Store
    from bushcraft.train.recipe import Recipe

RecipeArgument = Annotated[
    str | None, typer.Argument(help="A recipe's path, or the name of one that comes along (tiny).")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a value: --set optimizer.learning_rate=1e-3.")]
Explain = Annotated[bool, typer.Option("--explain", help="Print the recipe, where each value is from, what it means.")]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Tell what a rank would hold, send and compute, and allocate nothing.")
]
WorldSize = Annotated[
    int | None, typer.Option("--world-size", min=1, help="Of a dry run: so many ranks; as many as the recipe asks for.")
]
DeviceMemory = Annotated[
    float | None,
    typer.Option("--device-memory", min=0.001, help="Of a dry run: GiB of a device; 74.5, an H100's, by default."),
]


def train(
    recipe: RecipeArgument = None,
    set_: Set = None,
    explain: Explain = False,
    dry_run: DryRun = False,
    world_size: WorldSize = None,
    device_memory: DeviceMemory = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Train. The same command goes on with a run that was stopped or killed, to the same bits."""
    from bushcraft.train.explain import print_explanation
    from bushcraft.train.resolve import load_recipe

    resolved = load_recipe(recipe, set_ or [])
    if explain:
        return print_explanation(resolved, as_json=json)
    if dry_run:
        return _dry_run(resolved.recipe, world_size, device_memory, json)
    if world_size is not None or device_memory is not None:
        raise RecipeError(
            "--world-size and --device-memory are those of a dry run",
            "Add --dry-run, or train with so many ranks by --set parallel.shard=N",
        )
    world = world_of(os.environ)
    if world is None and (n := resolved.recipe.parallel.asked_ranks) > 1:
        from bushcraft.train.layout import checked_layout

        checked_layout(resolved.recipe, n)  # refused before anything is started
        raise typer.Exit(run_ranks(n, [sys.executable, "-m", "bushcraft.cli", *sys.argv[1:]], os.environ))
    from bushcraft.ledger.ledger import read_ledger
    from bushcraft.train.progress import stdout_console
    from bushcraft.train.report import final_report
    from bushcraft.train.summary import is_finished, summarise

    where = open_store(store)
    is_first = world is None or world.rank == 0
    console = stdout_console(quiet=json or not is_first)
    name = resolved.recipe.run.name
    if is_finished(where.runs, resolved.recipe):
        console.print(f"run {name} is finished; train another one by --set run.name=NAME\n", highlight=False)
        finished = True
    else:
        finished = _train(where, resolved.recipe, console, world)
    if not is_first:
        return None
    if json:
        return print_json(vars(summarise(where.runs, name)))
    if finished:
        console.print(final_report(where, name, read_ledger(where.runs / name, name)), highlight=False, markup=False)
    return None


def _dry_run(recipe: "Recipe", world_size: int | None, device_memory: float | None, json: bool) -> None:
    from bushcraft.train.dry_run.report import DEVICE_GIB, dry_run, print_dry_run
    from bushcraft.train.progress import stdout_console

    found = dry_run(recipe, None, world_size=world_size, device_memory_gib=device_memory or DEVICE_GIB)
    if json:
        print(found.to_json())
    else:
        print_dry_run(stdout_console(), found)


def _train(store: "Store", recipe: "Recipe", console: "Console", world: World | None) -> bool:
    """Train to the end (True) or until somebody asks to stop (False)."""
    from bushcraft.parallel.ranks import joined
    from bushcraft.train.open_session import open_session
    from bushcraft.train.stop import StopRequest
    from bushcraft.train.trainer import train as train_session

    with StopRequest().on_signals() as stop, joined(world, os.environ):
        session = open_session(store, recipe, lambda text: console.print(text, highlight=False), world)
        ended_well = False
        try:
            console.print(session.introduction(), highlight=False)
            finished = train_session(session, console, stop) is not None
            ended_well = True
        finally:
            session.close(ended_well)
    if not finished:
        where = f"position {session.position:,} of {session.record.sequences:,}"
        if session.position == session.record.sequences:
            where += ", before the last evaluation"
        console.print(f"stopped at {where}; checkpoint written, the same command goes on", highlight=False)
    return finished
