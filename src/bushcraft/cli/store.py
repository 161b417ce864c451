"""`bushcraft store`: the depots of a store, how they stand, and what keeps them well."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bushcraft.cli import store_copies, store_files, store_nodes, store_verify
from bushcraft.cli.options import JsonOption, StoreOption, print_json, print_table
from bushcraft.cli.store_options import counted, duration, open_depots, pairs, size
from bushcraft.errors import StoreError
from bushcraft.store.initialise import OptionValue
from bushcraft.store.workspace import default_store

app = typer.Typer(help="Keep bytes at several places, verified; look after them.", no_args_is_help=True)


@app.command()
def init(
    depot: Annotated[list[str] | None, typer.Option(help="NAME=URL: a directory, s3://…, gs://… or az://….")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="NAME=PROVIDER: who could lose that depot.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME.KEY=VALUE: how its endpoint is reached.")] = None,
    partial: Annotated[
        list[str] | None, typer.Option(help="NAME: has only what is written to it, as a disk that cannot hold all.")
    ] = None,
    copies: Annotated[int | None, typer.Option(help="Depots that have a thing before it is published.")] = None,
    off_provider: Annotated[int | None, typer.Option(help="Of these, at another provider than the first.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a store, or add depots to one and change its policy."""
    from bushcraft.store.initialise import initialise

    root = (store or default_store()).absolute()
    had_objects = (root / "depot" / "objects").is_dir() and any((root / "depot" / "objects").iterdir())
    urls = {
        name: url if "://" in url else str(Path(url).absolute()) for name, url in pairs(depot or [], "--depot").items()
    }
    settings = initialise(
        root, urls, pairs(provider or [], "--provider"), _options(option or []), copies, off_provider, partial or []
    )
    if json:
        return print_json({"store": str(root), **settings.model_dump()})
    rows = [[one.name, one.provider, one.url] for one in settings.depots]
    print_table(["depot", "provider", "place"], rows)
    print(
        f"{root}: {settings.copies} copies, {settings.off_provider} of them off-provider, before anything is published"
    )
    if urls and had_objects:
        print("what is there already comes to new depots by `bushcraft store replicate --all`")
    return None


@app.command("status")
def status_(store: StoreOption = None, json: JsonOption = False) -> None:
    """Every depot's size, lag and repairs, and whether the policy is kept. Exit code 1 if one does not answer."""
    from bushcraft.store.care.status import DepotStatus, status

    root, depots = open_depots(store)
    found = status(root, depots)

    def about(depot: DepotStatus) -> dict[str, Any]:
        known: dict[str, Any] = {
            "name": depot.name,
            "provider": depot.provider,
            "place": depot.place,
            "error": depot.error,
        }
        if depot.size is not None:
            known |= {"objects": depot.size.objects, "bytes": depot.size.bytes, "exact": depot.size.exact}
        known |= {"references": len(depot.refs), "references_behind": depot.refs_behind}
        return known | {"lag": asdict(depot.lag), "repairs": depot.repairs}

    if json:
        policy = {"copies": found.copies, "off_provider": found.off_provider, "sampled": found.sampled}
        policy |= {"below_policy": found.below_policy, "kept": found.policy_kept}
        print_json({"store": str(root), "depots": [about(depot) for depot in found.depots], "policy": policy})
    else:
        rows = [_row(depot) for depot in found.depots]
        columns = ["depot", "provider", "objects", "bytes", "behind by", "references", "repairs", "place"]
        print_table(columns, rows, ("objects", "bytes", "references", "repairs"))
        print(_policy(found.copies, found.off_provider, found.sampled, found.below_policy))
    raise typer.Exit(1 if any(depot.error for depot in found.depots) else 0)


def _row(depot: Any) -> list[str]:
    """Strings for the table; ≈ marks what is estimated."""
    about = "≈ " if depot.size and not depot.size.exact else ""
    objects, n_bytes = (f"{about}{depot.size.objects:,}", about + size(depot.size.bytes)) if depot.size else ("?", "?")
    lag = depot.lag
    parts = [counted(lag.objects, "object"), size(lag.bytes), counted(lag.refs, "reference"), duration(lag.seconds)]
    behind = ", ".join(parts) if lag.objects or lag.refs else "nothing"
    references = f"{len(depot.refs)} ({depot.refs_behind} behind)" if depot.refs_behind else str(len(depot.refs))
    place = f"{depot.place}: {depot.error}" if depot.error else depot.place
    return [depot.name, depot.provider, objects, n_bytes, behind, references, str(depot.repairs), place]


def _policy(copies: int, off_provider: int, sampled: int, below: int) -> str:
    policy = f"policy: copies {copies}, off-provider {off_provider}"
    if not sampled:
        return f"{policy}; nothing is stored yet"
    kept = "kept" if not below else f"not kept by {below}"
    return f"{policy}; {kept} (of {sampled:,} objects that were compared)" + (
        "; `bushcraft store scrub` mends it" if below else ""
    )


def _options(given: list[str]) -> dict[str, dict[str, OptionValue]]:
    options: dict[str, dict[str, OptionValue]] = {}
    for where, text in pairs(given, "--option").items():
        name, dot, key = where.partition(".")
        if not (dot and key):
            raise StoreError(f"--option {where}={text} names no option", "Write it so: --option NAME.KEY=VALUE")
        options.setdefault(name, {})[key] = _value(text)
    return options


def _value(text: str) -> OptionValue:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


store_files.register(app)
store_verify.register(app)
store_copies.register(app)
store_nodes.register(app)
