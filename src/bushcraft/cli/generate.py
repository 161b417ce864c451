"""`bushcraft generate`: let a trained model go on with texts, or fill their gaps."""

import json as json_format
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json
from bushcraft.errors import DataError

if TYPE_CHECKING:  # torch takes seconds to import: bad options are told before
    from collections.abc import Iterator

    from bushcraft.data.chat_template import ChatTemplate
    from bushcraft.store.workspace import Store
    from bushcraft.train.prompt import Prompt

TOKENS = 128
"""Generated if nothing else is asked for."""


def generate(
    run: Annotated[str, typer.Argument(help="A run's name, or the object name of a checkpoint's manifest.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A text to go on with. Given several times, all texts are worked on together."),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="More prompts: one a line; in a .jsonl file each line is a JSON string, or an object with a prompt."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"Generate at most so many tokens; if not given {TOKENS}, or what fits the context."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token each time.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the most probable tokens of this mass, which is above 0.")
    ] = 0.95,
    seed: Annotated[
        int,
        typer.Option(min=0, help="The same seed gives the same text. The second prompt has the next seed, and so on."),
    ] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are messages, put to the model by the chat template of its data.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Generate text. The text of a single prompt goes to stdout as it comes.

    A model trained on gaps (span_corruption, ul2) fills in what a prompt marks by <extra_id_0>, <extra_id_1> and so on.
    In a prompt that has none, <extra_id_0> is put at the end. What is filled in follows the name of its gap.

    A model trained by UL2 reads a mode token first: write [NLU], [S2S] or [NLG] at the beginning of the prompt.
    Without one it is [S2S] where <extra_id_0> was put at the end, and [NLU] elsewhere.
    """
    where = open_store(store)  # before torch is imported, which takes seconds
    if top_p == 0:
        raise DataError("--top-p 0 leaves no token to choose from", "--temperature 0 takes the most probable token")
    texts = [*(prompt or []), *(_lines(prompt_file) if prompt_file else [])] or [""]
    from bushcraft.train.load_model import load_model

    model, checkpoint = load_model(where, run)
    if chat:
        template = _chat_template(where, run)
        prompts = [model.prompts.read_chat(text, template, n_tokens=tokens or 1) for text in texts]
        model = replace(model, stops=model.stops | model.prompts.answer_ends(template))
    else:
        prompts = [model.prompts.read(text, n_tokens=tokens or 1) for text in texts]
    pieces = model.continuations(prompts, tokens or TOKENS, temperature, top_p, seed)
    if len(prompts) == 1 and not json:
        return _stream(prompts[0], pieces)
    found = _collect(prompts, pieces, tokens or TOKENS)
    if json:
        both = [{"prompt": prompt.text, "text": text} for prompt, text in zip(prompts, found, strict=True)]
        return print_json({"checkpoint": checkpoint, "texts": both})
    for number, (each, text) in enumerate(zip(prompts, found, strict=True), 1):
        print(f"── {number} of {len(prompts)} ──\n{each.shown}{text}")
    return None


def _chat_template(store: "Store", run: str) -> "ChatTemplate":
    """The template of the data that the model was trained on, or that it was imported with. Errors: `DataError`."""
    from bushcraft.data.chat_template import ChatTemplate, from_json
    from bushcraft.train.load_model import find_model

    saved = find_model(store, run)
    examples, imported = saved.dataset.examples, saved.manifest.tokenizer
    if examples and examples.chat_template:
        return from_json(store.depot.read(examples.chat_template))
    if imported and imported.chat_template:
        engine = Tokenizer.from_buffer(store.depot.read(imported.object))
        begin, end = imported.begin, next(iter(imported.ends), None)
        names = [None if token is None else engine.id_to_token(token) for token in (begin, end)]
        return ChatTemplate(imported.chat_template, "of the imported model", *names)
    raise DataError(f"the data of {run!r} have no chat template", "Leave out --chat, and give the prompt as it is")


def _lines(path: Path) -> list[str]:
    """The prompts of a file; empty lines are none. Errors: `DataError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other character ends a line
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise DataError(f"cannot read the prompts of {path}: {reason}", "Name a text file, or a .jsonl file") from None
    prompts = [
        _json_prompt(path, number, line) if path.suffix == ".jsonl" else line
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise DataError(f"there is no prompt in {path}: it is empty", "Write one prompt a line")
    return prompts


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        value = json_format.loads(line)
    except ValueError:
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise DataError(f"{path}, line {number} is no prompt", 'Write "TEXT" or {"prompt": "TEXT"} in each line')
    return prompt


def _stream(prompt: "Prompt", pieces: "Iterator[tuple[int, str]]") -> None:
    sys.stdout.write(prompt.shown)
    for _, piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def _collect(prompts: "list[Prompt]", pieces: "Iterator[tuple[int, str]]", n_tokens: int) -> list[str]:
    """The text of each prompt."""
    texts = [""] * len(prompts)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("generating", total=len(prompts) * n_tokens)
        for number, piece in pieces:
            texts[number] += piece
            bars.advance(task)
    return texts
