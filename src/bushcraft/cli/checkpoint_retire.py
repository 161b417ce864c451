"""`bushcraft checkpoint retire`: keep what a policy wants, and let the others go."""

from typing import Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, print_json
from bushcraft.cli.store_options import know_links, open_depots


def retire_(
    run: Annotated[str, typer.Argument(help="A run's name.")],
    keep_last: Annotated[int, typer.Option(min=2, help="Keep so many of the newest.")] = 2,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep the first at or after each multiple of so many sequences.")
    ] = None,
    keep_best: Annotated[int, typer.Option(min=0, help="Keep so many of the lowest held-out loss.")] = 0,
    milestone: Annotated[list[int] | None, typer.Option(help="Keep this number. May be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Let go of checkpoints that a policy does not want; `store gc` then removes their bytes, after its grace."""
    from bushcraft.checkpoint.retention import RetentionPolicy
    from bushcraft.checkpoint.retire import judge, retire
    from bushcraft.ledger.ledger import read_ledger
    from bushcraft.store.care import gc

    root, depots = open_depots(store)
    know_links()
    if not dry_run:
        gc.check_allowed(depots)
    directory = root / "runs" / run
    events = read_ledger(directory, run) if (directory / "ledger.jsonl").exists() else []
    losses = {
        event.position: loss
        for event in events
        if event.type == "evaluation"
        if (loss := event.data.get("bits_per_byte") or event.data.get("objective_loss")) is not None
    }
    policy = RetentionPolicy(keep_last, keep_every, frozenset(milestone or ()), keep_best)
    found = judge(depots, run, policy, losses)
    if not dry_run:
        retire(depots, run, found)
    if json:
        return print_json({"run": run, "kept": found.kept, "gone": found.gone, "dry_run": dry_run})
    print(f"kept  {', '.join(map(str, found.kept))}")
    print(f"{'would go' if dry_run else 'gone'}  {', '.join(map(str, found.gone)) or 'none'}")
    return None
