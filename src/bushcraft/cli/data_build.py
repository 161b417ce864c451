"""`bushcraft data build`: files, or this Python installation itself, into a data set to train on."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bushcraft.cli.options import JsonOption, StoreOption, print_json
from bushcraft.errors import DataError
from bushcraft.store.workspace import Store, default_store

PLAIN_SECONDS = 5.0
STAGES = {
    "scan": "reading",
    "tokenizer": "training the tokenizer",
    "encode": "tokenising",
    "heldout": "held-out set and baselines",
    "verify": "checking what is there",
}


def build(
    name: Annotated[str, typer.Argument(help="What to call the data set.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, files or quoted globs: .txt .md .rst .py .jsonl (also .gz, .zst) .parquet"),
    ] = None,
    python: Annotated[bool, typer.Option("--python", help="The text of this Python installation itself.")] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json to use, or a folder with one; without it one is trained on the input."),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the tokenizer that is trained.")] = 4096,
    separator: Annotated[str | None, typer.Option(help="The given tokenizer's token between documents.")] = None,
    column: Annotated[str, typer.Option(help="The text column of .jsonl and .parquet.")] = "text",
    heldout: Annotated[float, typer.Option(help="Share of the documents that is held out, 0 to 0.5.")] = 0.08,
    heldout_mib: Annotated[int, typer.Option(min=0, help="At most so many MiB are held out.")] = 32,
    keep_copies: Annotated[bool, typer.Option("--keep-copies", help="Keep documents that occur again.")] = False,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Rows are prompts and answers (.jsonl): only answers are learnt.")
    ] = False,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="With --instructions: a Jinja2 file, a tokenizer_config.json, or a folder with one."),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="With --instructions: leave out examples of more tokens.")
    ] = None,
    on_bad: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What to do about input that cannot be read: stop, or skip and list."),
    ] = "stop",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core by default.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Build a data set: read, split, tokenise, pack. Stopped or killed, the same command goes on with it."""
    from bushcraft.data.build import build_dataset
    from bushcraft.data.build_settings import BuildSettings
    from bushcraft.data.chat_template import load_chat_template
    from bushcraft.data.examples import ExampleSettings
    from bushcraft.data.python_corpus import python_sources
    from bushcraft.data.sources import find_sources
    from bushcraft.data.workers import available_cores

    skipped: list[str] = []

    def skip(error: DataError) -> None:
        if on_bad == "stop":
            raise error
        skipped.append(error.message)

    if python == bool(paths):
        raise DataError("nothing to read" if not paths else "--python takes no other input", "Give PATH… or --python")
    if not instructions and (chat_template or longest):
        option = "--chat-template" if chat_template else "--longest"
        raise DataError(f"{option} is about prompts and answers", "Add --instructions")
    if instructions and column != "text":
        raise DataError("--column is about text", "Leave it out: --instructions knows the names of its columns")
    template = load_chat_template(chat_template) if chat_template else None
    settings = BuildSettings(
        column=column,
        heldout_fraction=heldout,
        heldout_bytes=heldout_mib << 20,
        vocab_size=vocab_size,
        tokenizer=_read(tokenizer) if tokenizer else None,
        separator=separator,
        skip_bad=on_bad == "skip",
        keep_copies=keep_copies,
        instructions=ExampleSettings(template, longest) if instructions else None,
    )
    settings.check()
    sources = python_sources() if python else find_sources(paths or [], skip)
    with BuildProgress(Console(stderr=True)) as progress:
        place = Store.create(store or default_store())
        result = build_dataset(place, name, sources, settings, workers or available_cores(), progress, skipped)
    if json:
        print_json(asdict(result) | {"next": result.next_command})
    else:
        print("\n".join(result.lines()))


class BuildProgress:
    """A bar a stage on a terminal; elsewhere a line when a stage begins, and one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._plain = not console.is_terminal
        self._stages: dict[str, TaskID] = {}
        self._said = 0.0

    def __enter__(self) -> "BuildProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        first = stage not in self._stages
        if first:
            self._stages[stage] = self._bars.add_task(STAGES[stage], total=None)
        self._bars.update(self._stages[stage], completed=done, total=total if done else None)
        if self._plain and (first or (total > 1 and time.monotonic() - self._said >= PLAIN_SECONDS)):
            share = f": {100 * done // max(1, total)} % of {total / 1e6:,.1f} MB" if total > 1 else ""
            print(f"{STAGES[stage]}{share}", file=sys.stderr, flush=True)
            self._said = time.monotonic()


def _read(path: Path) -> bytes:
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "Name a tokenizer.json by --tokenizer") from None
