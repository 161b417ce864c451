"""`bushcraft store replicate|gc`: copies where they should be, and nothing deleted that anybody needs."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bushcraft.cli.options import JsonOption, StoreOption, print_json, print_table
from bushcraft.cli.store_options import bar, counted, duration, know_links, open_depots, size
from bushcraft.store.depots import Depots

_WATCH_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Add the commands to `bushcraft store`."""
    app.command("replicate")(replicate_)
    app.command()(gc)


def replicate_(
    all_: Annotated[bool, typer.Option("--all", help="Compare all depots first, not only their journals.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what is written from now on, until Ctrl-C.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Bring depots what they lack. Exit code 1 if one is still behind."""
    from bushcraft.store.care.replicate import note_all, replicate

    _, depots = open_depots(store)
    if all_:
        with bar("comparing depots") as tell:
            noted = note_all(depots, lambda share: tell(share, "by name"))
        if not json:
            print("; ".join(f"{name} lacks {n:,}" for name, n in noted.items()))
    while True:
        with bar("replicating") as tell:
            reports = replicate(
                depots,
                lambda depot, n, left: tell(
                    n / (n + left.objects + left.refs or 1),
                    f"{depot}, {left.objects:,} objects and {size(left.bytes)} to go",
                ),
            )
        if not watch:
            break
        try:
            time.sleep(_WATCH_SECONDS)
        except KeyboardInterrupt:
            break
    if json:
        print_json([asdict(report) for report in reports])
    else:
        for report in reports:
            state = "has everything" if report.error is None else f"is behind: {report.error}"
            print(f"{report.depot}: {report.entries:,} delivered, {state}")
    raise typer.Exit(1 if any(report.error for report in reports) else 0)


def gc(
    sweep: Annotated[bool, typer.Option("--sweep", help="Delete what was marked longer than the grace ago.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    allow_single_copy: Annotated[
        bool, typer.Option("--allow-single-copy", help="Delete although the store has a single depot.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Mark what no reference keeps, or delete what was marked long ago. Off unless the store's settings allow it."""
    from bushcraft.store.care import gc as collector

    root, depots = open_depots(store)
    know_links()
    plan = collector.plan(root, depots, time.time())
    about: dict[str, Any] = {
        "kept": len(plan.kept),
        "unreachable": len(plan.tombstones),
        "unreachable_bytes": plan.bytes,
        "due": len(plan.due),
        "due_bytes": plan.due_bytes,
        "grace_days": depots.settings.gc.grace_days,
        "deleted": 0,
        "marked": False,
    }
    if not json:
        grace = duration(depots.settings.gc.grace_days * 86400)
        rows = [
            ["kept by references", f"{len(plan.kept):,}", ""],
            ["unreachable", f"{len(plan.tombstones):,}", size(plan.bytes)],
            [f"of these marked {grace} ago", f"{len(plan.due):,}", size(plan.due_bytes)],
        ]
        print_table(["objects", "number", "bytes"], rows, ("number", "bytes"))
    if not dry_run and sweep:
        with bar("reading what is kept") as tell:
            about["deleted"] = collector.sweep(
                root, depots, plan, allow_single_copy, lambda n, n_all: tell(n / n_all, f"{n:,} of {n_all:,}")
            )
    elif not dry_run:
        collector.mark(depots, plan)
        about["marked"] = True
    if json:
        return print_json(about)
    return print(_outcome(depots, sweep, dry_run, about))


def _outcome(depots: Depots, sweep: bool, dry_run: bool, about: dict[str, Any]) -> str:
    if dry_run:
        return "nothing was deleted or marked: this was a dry run"
    if sweep:
        return f"deleted: {counted(about['deleted'], 'object')}"
    days = depots.settings.gc.grace_days
    marked = counted(about["unreachable"], "object")
    return f"marked: {marked}; `bushcraft store gc --sweep` may delete them after {days:g} days"
