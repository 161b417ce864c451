"""`bushcraft generate`: let a trained model go on with a text."""

import sys
from typing import Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json


def generate(
    run: Annotated[str, typer.Argument(help="A run's name, or the object name of a checkpoint's manifest.")],
    prompt: Annotated[str, typer.Option(help="The text to go on with.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Generate at most so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token each time.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the most probable tokens of this mass.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Generate text. The text goes to stdout as it comes."""
    where = open_store(store)  # before torch is imported, which takes seconds
    from bushcraft.train.load_model import load_model

    model, checkpoint = load_model(where, run)
    pieces = model.continuation(prompt, tokens, temperature, top_p, seed)
    if json:
        return print_json({"prompt": prompt, "text": "".join(pieces), "checkpoint": checkpoint})
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return None
