"""`bushcraft checkpoint`: what was saved, and whether it is whole."""

from typing import Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table
from bushcraft.errors import BushcraftError, CheckpointError
from bushcraft.store.workspace import Store

app = typer.Typer(help="List and verify checkpoints.", no_args_is_help=True)


@app.command("list")
def list_(
    run: Annotated[str | None, typer.Argument(help="Only this run's.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """All checkpoints, newest first."""
    from bushcraft.checkpoint.manifest import read_manifest

    where = open_store(store)
    found = []
    for name, number, checkpoint in _all(where, run):
        about: dict[str, object] = {"run": name, "number": number, "manifest": checkpoint}
        try:
            manifest = read_manifest(where.depot, checkpoint)
        except BushcraftError as error:
            found.append({**about, "error": error.message})
            continue
        n_bytes = sum(chunk.end - chunk.begin for entry in manifest.tensors.values() for chunk in entry.chunks)
        found.append({**about, "position": manifest.position, "step": manifest.step, "bytes": n_bytes})
    if json:
        return print_json(found)
    if not found:
        print("no checkpoints yet")
        return None
    rows = [
        [
            str(c["run"]),
            str(c["number"]),
            str(c.get("position", "")),
            str(c.get("step", "")),
            _mib(c),
            str(c["manifest"]),
        ]
        for c in found
    ]
    return print_table(
        ["run", "number", "position", "step", "MiB", "manifest"], rows, ("number", "position", "step", "MiB")
    )


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(help="Only this run's; or the object name of one manifest.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Read every byte of the checkpoints against its checksum. Exit code 1 if one is damaged."""
    from bushcraft.checkpoint.newest import verify as verify_checkpoint

    where = open_store(store)
    chosen = [("", 0, run)] if run and len(run) == 64 else _all(where, run)
    results = []
    for name, number, checkpoint in chosen:
        try:
            _, n_bytes = verify_checkpoint(where.depot, checkpoint)
            results.append({"run": name, "number": number, "manifest": checkpoint, "bytes": n_bytes, "error": None})
        except BushcraftError as error:
            results.append({"run": name, "number": number, "manifest": checkpoint, "bytes": 0, "error": error.message})
    if json:
        print_json(results)
    else:
        for result in results:
            told = result["error"] or f"whole, {result['bytes']:,} bytes"
            print(f"{result['run']} {result['number']} {str(result['manifest'])[:12]}  {told}")
    raise typer.Exit(1 if any(result["error"] for result in results) else 0)


def _all(store: Store, run: str | None) -> list[tuple[str, int, str]]:
    """(run, number, manifest), newest first. Errors: `CheckpointError` if the run has none."""
    refs = [f"checkpoints/{run}"] if run else store.depot.refs("checkpoints")
    found = [
        (ref.removeprefix("checkpoints/"), number, name) for ref in refs for number, name in store.depot.history(ref)
    ]
    if run and not found:
        known = ", ".join(ref.removeprefix("checkpoints/") for ref in store.depot.refs("checkpoints")) or "none"
        raise CheckpointError(f"run {run!r} has no checkpoints", f"Runs that have: {known}")
    return found


def _mib(checkpoint: dict[str, object]) -> str:
    n_bytes = checkpoint.get("bytes")
    return f"{n_bytes / 2**20:.1f}" if isinstance(n_bytes, int) else str(checkpoint["error"])
