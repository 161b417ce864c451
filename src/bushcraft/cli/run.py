"""`bushcraft run`: what was trained, and what it consumed."""

import time
from dataclasses import asdict
from typing import Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table
from bushcraft.errors import RunError
from bushcraft.ledger.ledger import read_ledger

app = typer.Typer(help="List, show, compare and explain runs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The run's name.")]


@app.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """All runs of the store."""
    from bushcraft.train.summary import runs, summarise

    where = open_store(store)
    found = [summarise(where.runs, name) for name in runs(where.runs)]
    if json:
        return print_json([asdict(run) for run in found])
    if not found:
        print("no runs yet; start one by `bushcraft train`")
        return None
    rows = [
        [
            run.name,
            run.state,
            f"{run.position:,}/{run.sequences:,}",
            "" if run.loss is None else f"{run.loss:.3f}",
            "" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}",
            f"{100 * run.goodput:.0f} %",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)),
        ]
        for run in found
    ]
    columns = ["run", "state", "sequences", "loss", "bits/byte", "goodput", "started"]
    return print_table(columns, rows, right=("sequences", "loss", "bits/byte", "goodput"))


@app.command()
def show(name: Name, store: StoreOption = None, json: JsonOption = False) -> None:
    """One run: its state, its newest checkpoint, how its time was spent."""
    from bushcraft.train.progress import clock
    from bushcraft.train.summary import summarise

    run = summarise(open_store(store).runs, name)
    if json:
        return print_json(asdict(run))
    print(f"run        {run.name}: {run.state}, {run.restarts} restarts")
    print(f"position   {run.position:,} of {run.sequences:,} sequences, step {run.step:,}")
    if run.loss is not None:
        print(f"loss       {run.loss:.4f} nats/token")
    if run.bits_per_byte is not None:
        print(f"held-out   {run.bits_per_byte:.4f} bits/byte")
    print(f"checkpoint {run.checkpoint or 'none yet'}")
    print(f"time       {clock(run.seconds)}: " + ", ".join(f"{k} {v:.1f} %" for k, v in run.time_shares.items()))
    return None


@app.command()
def events(
    name: Name,
    type_: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    last: Annotated[int, typer.Option(min=0, help="Only so many, counted from the end; 0 for all.")] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """The ledger, event by event."""
    found = read_ledger(open_store(store).runs / name, name)
    chosen = [event for event in found if type_ in (None, event.type)][-last:]
    if json:
        return print_json([vars(event) for event in chosen])
    for event in chosen:
        when = time.strftime("%H:%M:%S", time.localtime(event.wall))
        told = "  ".join(f"{key}={_short(value)}" for key, value in event.data.items())
        print(f"{event.sequence:>6}  {when}  g{event.generation}  {event.position:>9,}  {event.type:<11} {told}")
    return None


@app.command()
def compare(a: Name, b: Name, store: StoreOption = None, json: JsonOption = False) -> None:
    """Whether two runs consumed the same sequences and have the same weights, to the bit. Exit code 1 if not."""
    from bushcraft.train.compare import compare as compare_runs

    found = compare_runs(open_store(store), a, b)
    if json:
        print_json({**asdict(found), "identical": found.identical})
        raise typer.Exit(0 if found.identical else 1)
    for key, (one, other) in found.recipe.items():
        print(f"recipe     {key}: {one} and {other}")
    if found.first_difference is not None:
        print(f"receipts   differ: the first sequence that is not the same is at position {found.first_difference:,}")
        print(f"           `bushcraft run explain {a} --position {found.first_difference}` names its documents")
    elif found.compared_to:
        print(f"receipts   agree at every step up to position {found.compared_to:,}")
    else:
        print("receipts   the runs have no step that ends at the same position")
    if found.ends[0] != found.ends[1]:
        print(f"length     {a} has come to position {found.ends[0]:,}, {b} to {found.ends[1]:,}")
    if found.weights_at is None:
        print("weights    the runs have no checkpoint at the same position")
    elif found.different_tensors:
        shown = ", ".join(found.different_tensors[:3])
        print(f"weights    {len(found.different_tensors)} tensors differ at position {found.weights_at:,}: {shown} …")
    else:
        print(f"weights    bit-identical at position {found.weights_at:,}, optimizer included")
    raise typer.Exit(0 if found.identical else 1)


@app.command()
def explain(
    name: Name,
    position: Annotated[int, typer.Option(min=0, help="Which sequence: how many came before it.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """The documents behind one sequence of a run."""
    from bushcraft.train.open_data import open_datasets, open_loader
    from bushcraft.train.run_record import read_record

    where = open_store(store)
    history = read_ledger(where.runs / name, name)
    record = read_record(history, name)
    if position >= record.sequences:
        raise RunError(f"run {name!r} has {record.sequences} sequences", f"Ask for 0 to {record.sequences - 1}")
    datasets = open_datasets(where, record.recipe, record.datasets)
    found = open_loader(where, record.recipe, record, datasets, history).explain(position)
    if json:
        return print_json(found)
    first = found[0]
    print(f"position {position}: sequence {first['index']} of source {first['source']}, epoch {first['epoch']}")
    rows = [[d["document"], f"{d['tokens'][0]}-{d['tokens'][1]}", str(d["of"]), d["pack"][:12]] for d in found]
    return print_table(["document", "tokens", "of", "pack"], rows, right=("tokens", "of"))


def _short(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
