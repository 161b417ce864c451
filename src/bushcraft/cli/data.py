"""`bushcraft data`: build data sets, look into them, check them."""

from dataclasses import asdict
from typing import Annotated

import typer

from bushcraft.cli.data_build import build
from bushcraft.cli.data_preview import preview
from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table
from bushcraft.errors import BushcraftError

app = typer.Typer(help="Build, inspect, preview and verify data sets.", no_args_is_help=True)
app.command("build")(build)
app.command("preview")(preview)
Name = Annotated[str | None, typer.Argument(help="The data set's name; all of them by default.")]
OneName = Annotated[str, typer.Argument(help="The data set's name.")]


@app.command()
def inspect(name: Name = None, store: StoreOption = None, json: JsonOption = False) -> None:
    """What a data set holds: documents, bytes, tokens, tokenizer, packs, baselines."""
    from bushcraft.data.manifest import read_manifest

    depot = open_store(store).depot
    names = [name] if name else [ref.removeprefix("datasets/") for ref in depot.refs("datasets")]
    found = [{"manifest": root, **asdict(manifest)} for root, manifest in (read_manifest(depot, n) for n in names)]
    if json:
        return print_json(found)
    if not found:
        print("no data sets yet; build one by `bushcraft data build NAME PATH…`")
    for about in found:
        print(f"{about['name']}  {about['manifest']}")
        print(f"  tokenizer  {about['vocab_size']} tokens of {about['itemsize']} bytes, {about['fingerprint']}")
        rows = [
            [key, f"{s['n_documents']:,}", f"{s['n_text_bytes']:,}", f"{s['n_tokens']:,}", _ratio(s), str(s["n_packs"])]
            for key, s in about["splits"].items()
        ]
        columns = ["split", "documents", "bytes", "tokens", "bytes/token", "packs"]
        print_table(columns, rows, right=tuple(columns[1:]))
        for key, value in about["baselines"].items():
            print(f"  held-out by {key}: {value:.4f} bits/byte")
    return None


@app.command()
def verify(name: Name = None, store: StoreOption = None, json: JsonOption = False) -> None:
    """Read every pack of a data set against its hash. Exit code 1 if one is damaged."""
    from bushcraft.data.manifest import PackTable, read_manifest
    from bushcraft.store.pack import verify_pack

    depot = open_store(store).depot
    names = [name] if name else [ref.removeprefix("datasets/") for ref in depot.refs("datasets")]
    bad: list[dict[str, str]] = []
    n_packs = n_bytes = 0
    for dataset in names:
        _, manifest = read_manifest(depot, dataset)
        depot.verify(manifest.tokenizer)
        for split in manifest.splits.values():
            table = PackTable(depot, split)
            for entry in (table[i] for i in range(len(table))):
                n_packs, n_bytes = n_packs + 1, n_bytes + entry.n_bytes
                try:
                    verify_pack(depot, entry)
                except BushcraftError as error:
                    bad.append({"dataset": dataset, "pack": entry.object, "error": error.message})
    if json:
        print_json({"packs": n_packs, "bytes": n_bytes, "bad": bad})
    else:
        for problem in bad:
            print(f"{problem['dataset']}: {problem['error']}")
        print(f"{n_packs} packs, {n_bytes:,} bytes: {len(bad) or 'none'} damaged or missing")
    raise typer.Exit(1 if bad else 0)


def _ratio(split: dict[str, int]) -> str:
    return f"{split['n_text_bytes'] / split['n_tokens']:.2f}" if split["n_tokens"] else ""
