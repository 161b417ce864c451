"""`bushcraft store put|get|ls|mount`: a store's content as files."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json
from bushcraft.errors import BushcraftError, StoreError

LOOK_SECONDS = 0.05
"""Between two looks whether a mount that was started is there."""


def register(app: typer.Typer) -> None:
    """Add the commands to `bushcraft store`."""
    for command in (put, get, ls, mount):
        app.command(command.__name__)(command)


def put(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A folder, or one file.")],
    name: Annotated[str | None, typer.Argument(help="What to call it; its own name by default.")] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Take the files that links lead to.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Publish a folder or a file as a whole: who reads sees all of it, or the one before."""
    from bushcraft.store.outside.folder import put_folder
    from bushcraft.store.outside.folder_manifest import read_folder

    depot = open_store(store).depot
    name = name or path.resolve().name
    with _progress("storing") as progress:
        manifest = put_folder(depot, name, path, progress, follow_links)
    folder = read_folder(depot, manifest)
    if json:
        about = {"name": name, "manifest": manifest, "files": len(folder.files), "bytes": folder.n_bytes}
        return print_json(about)
    print(f"{name}: {len(folder.files)} files, {folder.n_bytes:,} bytes, manifest {manifest}")
    print(f"next: bushcraft store get {name} TARGET")
    return None


def get(
    name: Annotated[str, typer.Argument(metavar="NAME|OBJECT", help="A folder's name, or the name of an object.")],
    target: Annotated[Path, typer.Argument(help="A path where nothing is yet.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a published folder, or one object, verified; what a killed get left is used again."""
    from bushcraft.store.depot import OBJECT_NAME
    from bushcraft.store.outside.folder_get import get_folder, get_object
    from bushcraft.store.outside.folder_manifest import is_folder

    depot = open_store(store).depot
    is_object = OBJECT_NAME.fullmatch(name) is not None and not is_folder(depot, name)
    with _progress("fetching") as progress:
        if is_object:
            get_object(depot, name, target, progress)
        else:
            name = get_folder(depot, name, target, progress)
    if json:
        return print_json({"object" if is_object else "manifest": name, "target": str(target)})
    print(f"{target}: {'object' if is_object else 'folder'} {name}, every byte verified")
    return None


def ls(
    path: Annotated[str, typer.Argument(help="Where in the store's tree, such as folders/NAME.")] = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """What is in a store: folders, checkpoints, data sets, objects, references. Exit code 1 if something is damaged."""
    from bushcraft.store.outside.blocks import File
    from bushcraft.store.outside.tree import find, tree

    node = find(tree(open_store(store).depot), path)
    if node is None:
        raise StoreError(f"there is no {path!r} in the store", "`bushcraft store ls` shows what there is at the top")
    if isinstance(node, File):
        entries = iter([_entry(path.rstrip("/").rpartition("/")[2], lambda _: node)])
    else:
        entries = (_entry(name, node.child) for name in node.names())
    if json:
        found = list(entries)
        print_json(found)
        raise typer.Exit(any("error" in entry for entry in found))
    failed = False
    for entry in entries:
        failed |= "error" in entry
        print(_line(entry))
    raise typer.Exit(failed)


def mount(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory, or a new one.")],
    foreground: Annotated[bool, typer.Option("--foreground", help="Serve until Ctrl-C.")] = False,
    store: StoreOption = None,
) -> None:
    """Show a store as a read-only file system, every byte verified; damage is an I/O error and a logged line."""
    from bushcraft.store.outside.mount import check_mount_point
    from bushcraft.store.outside.mount import mount as serve
    from bushcraft.store.outside.tree import tree

    where = open_store(store)
    check_mount_point(directory)
    if not foreground:
        log = where.root / "mount.log"
        _start(where.root, directory, log)
        print(f"{directory}: the store {where.root}, read-only; what goes wrong stands in {log}")
        return print(f"next: fusermount3 -u {directory}  # when it is not needed any more")
    print(f"{directory}: the store {where.root}, read-only; Ctrl-C ends it", flush=True)
    return serve(tree(where.depot), directory, lambda line: print(line, file=sys.stderr, flush=True))


def _start(store: Path, directory: Path, log: Path) -> None:
    """Serve in a process of its own, which has no threads of ours. Errors: `StoreError` if it ended at once."""
    from bushcraft.store.durable import machine_errors

    command = [sys.executable, "-m", "bushcraft.cli", "store", "mount", str(directory)]
    with machine_errors("write", log), log.open("ab") as errors:
        begin = log.stat().st_size
        process = subprocess.Popen(
            [*command, "--foreground", "--store", str(store)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    while not directory.is_mount():
        try:
            process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        told = log.read_bytes()[begin:].decode(errors="replace").strip().removeprefix("error: ")
        raise StoreError(f"cannot mount at {directory}: {told or f'exit code {process.returncode}'}")


def _entry(name: str, child: Callable[[str], Any]) -> dict[str, Any]:
    from bushcraft.store.outside.blocks import File

    try:
        node = child(name)
    except BushcraftError as error:
        return {"name": name, "error": error.message}
    if isinstance(node, File):
        return {"name": name, "type": "file", "size": node.size}
    return {"name": name, "type": "directory"}


def _line(entry: dict[str, Any]) -> str:
    """Sizes in a column, and directories with a '/'; a name that is not UTF-8 is shown escaped."""
    name = entry["name"].encode(errors="backslashreplace").decode()
    if "error" in entry:
        return f"{'?':>15}  {name}  {entry['error']}"
    return f"{entry['size']:>15,}  {name}" if entry["type"] == "file" else f"{'':>15}  {name}/"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
