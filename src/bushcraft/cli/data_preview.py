"""`bushcraft data preview`: documents as they are stored, or as a recipe's objective puts them to the model."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json
from bushcraft.errors import DataError, RecipeError

if TYPE_CHECKING:
    from bushcraft.store.workspace import Store


def preview(
    name: Annotated[str, typer.Argument(help="The data set's name.")],
    recipe: Annotated[
        str | None, typer.Option(help="Show what the model of this recipe reads and must predict: a path or a name.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a value of the recipe.")] = None,
    position: Annotated[int, typer.Option(min=0, help="With --recipe: begin at this position of the run.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout; with --recipe it is train.")] = "train",
    documents: Annotated[int, typer.Option(min=1, help="Show so many documents, or examples of a recipe.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Show so many tokens of each document.")] = 120,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """The first documents, decoded from their tokens; with --recipe what is read and what is to be predicted."""
    where = open_store(store)
    if recipe is not None:
        return _examples(where, name, recipe, set_ or [], position, documents, json)
    if set_ or position:
        raise RecipeError("--set and --position are about a recipe", "Name it by --recipe")
    shown = _documents(where, name, split, documents, tokens)
    if json:
        return print_json(shown)
    for document in shown:
        print(f"── {document['document']}: {document['bytes']:,} bytes, {document['tokens']:,} tokens")
        print(document["text"])
    return None


def _documents(store: "Store", name: str, split: str, n_documents: int, n_tokens: int) -> list[dict[str, object]]:
    from tokenizers import Tokenizer

    from bushcraft.data.manifest import PackTable, read_manifest
    from bushcraft.store.pack import PackReader

    depot = store.depot
    _, manifest = read_manifest(depot, name)
    if split not in manifest.splits:
        raise DataError(f"data set {name!r} has no split {split!r}", f"Use one of {', '.join(manifest.splits)}")
    tokenizer = Tokenizer.from_buffer(depot.read(manifest.tokenizer))
    table = PackTable(depot, manifest.splits[split])
    every = (document for i in range(len(table)) for document in PackReader(depot, table[i]).documents())
    return [
        {
            "document": document,
            "tokens": len(ids),
            "bytes": n_bytes,
            "ids": ids[:n_tokens].tolist(),
            "text": tokenizer.decode(ids[1:n_tokens].tolist(), skip_special_tokens=False),
        }
        for document, ids, n_bytes in islice(every, n_documents)
    ]


def _examples(
    store: "Store", name: str, recipe: str, settings: list[str], position: int, n_examples: int, json: bool
) -> None:
    from bushcraft.train.preview import colored, legend, plain, preview_of
    from bushcraft.train.progress import stdout_console
    from bushcraft.train.resolve import load_recipe

    shown = preview_of(store, load_recipe(recipe, settings).recipe, name, position, n_examples)
    if json:
        return print_json([example.to_json(shown.decode) for example in shown.examples])
    console = stdout_console(quiet=False)
    if console.is_terminal:
        console.print(legend())
    for number, example in enumerate(shown.examples, 1):
        for side, spans in (("encoder", example.encoder), ("decoder", example.decoder)):
            if not spans:
                continue
            console.print(f"── {number}, {side}", style="bold", highlight=False)
            if console.is_terminal:
                console.print(colored(spans, shown.decode, shown.special))
            else:
                print(plain(spans, shown.decode))
    return None
