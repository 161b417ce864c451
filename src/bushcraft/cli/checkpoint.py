"""`bushcraft checkpoint`: what was saved, and whether it is whole; Hugging Face folders both ways, torch DCP in."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from bushcraft.cli import checkpoint_retire, checkpoint_show
from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table
from bushcraft.errors import BushcraftError, CheckpointError
from bushcraft.store.workspace import Store, default_store

app = typer.Typer(help="List, show, compare, verify, export and import checkpoints.", no_args_is_help=True)
app.command()(checkpoint_show.show)
app.command()(checkpoint_show.diff)
app.command("retire")(checkpoint_retire.retire_)


@app.command("list")
def list_(
    run: Annotated[str | None, typer.Argument(help="Only this run's.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """All checkpoints, newest first, and which depots have all of each."""
    from bushcraft.checkpoint.contents import Places, all_objects, tensor_bytes
    from bushcraft.checkpoint.manifest import read_manifest

    where = open_store(store)
    found: list[dict[str, object]] = []
    places = Places(where.depot)
    for name, number, checkpoint in _all(where, run):
        about: dict[str, object] = {"run": name, "number": number, "manifest": checkpoint}
        try:
            manifest = read_manifest(where.depot, checkpoint)
        except BushcraftError as error:
            found.append({**about, "error": error.message})
            continue
        durable = places.of_all(all_objects(checkpoint, manifest))
        about |= {"position": manifest.position, "step": manifest.step, "bytes": tensor_bytes(manifest)}
        found.append({**about, "durable_in": durable})
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
            _depots(c),
            str(c["manifest"]),
        ]
        for c in found
    ]
    return print_table(
        ["run", "number", "position", "step", "MiB", "durable in", "manifest"],
        rows,
        ("number", "position", "step", "MiB"),
    )


@app.command()
def verify(
    run: Annotated[
        str | None, typer.Argument(help="Only this run's; or one, as RUN@NUMBER or a manifest's object name.")
    ] = None,
    all_depots: Annotated[bool, typer.Option("--all-depots", help="The copies of every depot.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Read every byte of the checkpoints against its checksum. Exit code 1 if one is damaged."""
    from bushcraft.checkpoint.contents import members
    from bushcraft.checkpoint.named import manifest_named
    from bushcraft.checkpoint.newest import verify as verify_checkpoint

    where = open_store(store)
    is_one = run is not None and ("@" in run or len(run) == 64)
    chosen = [("", 0, manifest_named(where.depot, run))] if run and is_one else _all(where, run)
    results = []
    for name, number, checkpoint in chosen:
        for depot in members(where.depot) if all_depots else (where.depot,):
            about = {"run": name, "number": number, "manifest": checkpoint, "depot": depot.name}
            try:
                _, n_bytes = verify_checkpoint(depot, checkpoint)
                results.append({**about, "bytes": n_bytes, "error": None})
            except BushcraftError as error:
                results.append({**about, "bytes": 0, "error": error.message})
    if json:
        print_json(results)
    else:
        for result in results:
            told = result["error"] or f"whole, {result['bytes']:,} bytes"
            place = f"  {result['depot']}" if all_depots else ""
            print(f"{result['run']} {result['number']} {str(result['manifest'])[:12]}{place}  {told}")
    raise typer.Exit(1 if any(result["error"] for result in results) else 0)


class ExportDtype(StrEnum):
    """What weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="RUN, RUN@NUMBER or a manifest's object name.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    dtype: Annotated[ExportDtype, typer.Option(help="What the weights are written in.")] = ExportDtype.float32,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder: Llama, Qwen3 or T5Gemma."""
    where = open_store(store)  # before torch is imported, which takes seconds
    import torch

    from bushcraft.checkpoint.huggingface_export import export_folder
    from bushcraft.checkpoint.named import manifest_named
    from bushcraft.train.load_model import find_model, text_side

    saved = find_model(where, manifest_named(where.depot, run) if "@" in run else run)
    model, context = saved.recipe.model, saved.recipe.run.sequence_length
    text = text_side(where, saved)
    with _progress("writing tensors") as progress:
        architecture = export_folder(
            where.depot, saved.manifest, model, text, context, folder, getattr(torch, dtype), progress
        )
    objective, notes = saved.recipe.objective, []
    if model.kind == "decoder" and objective.kinds != {"causal"} and objective.prompts_both_ways:
        notes.append(f"the model was trained to read prompts both ways; a {architecture} reads them causally")
    if json:
        about = {"architecture": architecture, "folder": str(folder), "dtype": dtype, "checkpoint": saved.name}
        return print_json({**about, "notes": notes})
    print(f"{folder}: checkpoint {saved.name[:12]} as {architecture}, {dtype}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return None


class ImportFormat(StrEnum):
    """What a folder holds."""

    huggingface = "huggingface"
    dcp = "dcp"


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face folder, or a torch DCP directory.")],
    name: Annotated[str, typer.Argument(help="What the checkpoint is to be called.")],
    format_: Annotated[
        ImportFormat | None, typer.Option("--format", help="dcp where there is a .metadata, else huggingface.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Of dcp: the recipe that the model and its data are in.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Of dcp: override a value of the recipe.")] = None,
    prefix: Annotated[str, typer.Option(help="Of dcp: what stands before parameters' names, such as model. .")] = "",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Of dcp: unpickle .metadata, which runs whatever code is in it.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a checkpoint of a Hugging Face folder (Llama, Qwen3 or T5Gemma) or of a torch DCP directory."""
    is_dcp = (folder / ".metadata").is_file() if format_ is None else format_ == ImportFormat.dcp
    if not is_dcp and (recipe or set_ or prefix or allow_pickle):
        raise CheckpointError(f"--recipe, --set, --prefix and --allow-pickle are not for {folder}", "Leave them away")
    where = open_store(store) if is_dcp else Store.create(store or default_store())
    with _progress("reading tensors") as progress:
        if is_dcp:
            from bushcraft.cli.checkpoint_dcp import import_directory

            checkpoint, manifest = import_directory(
                where, folder, name, recipe, set_ or [], prefix, allow_pickle, progress
            )
        else:
            from bushcraft.checkpoint.huggingface_import import import_folder

            checkpoint, manifest = import_folder(where.depot, folder, name, progress)
    n_parameters = sum(chunk.end - chunk.begin for t in manifest.tensors.values() for chunk in t.chunks) // 4
    if json:
        return print_json({"name": name, "manifest": checkpoint, "parameters": n_parameters})
    print(f"checkpoint {name}: {checkpoint[:12]}, {n_parameters / 1e6:,.2f}M parameters")
    print(f"next: bushcraft generate {name} --prompt TEXT")
    return None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


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


def _depots(checkpoint: dict[str, object]) -> str:
    durable = checkpoint.get("durable_in")
    return ", ".join(durable) or "none" if isinstance(durable, list) else ""
