"""`bushcraft store probe|serve`: what an endpoint really does; pieces of objects for the nodes of a cluster."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table
from bushcraft.cli.store_options import open_depots, size
from bushcraft.errors import StoreError

_FINDINGS = (
    "range", "conditional_put", "multipart", "list_after_put", "versioning", "object_lock", "checksum_enforced"
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to `bushcraft store`."""
    app.command("probe")(probe_)
    app.command("serve")(serve_)


def probe_(
    depot: Annotated[str | None, typer.Argument(help="The depot's name; all buckets by default.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Find out what buckets really do, by about 50 MB of transfer each; what was found is relied on from then on."""
    from bushcraft.store.buckets.bucket import BucketDepot
    from bushcraft.store.buckets.probe import probe

    root, depots = open_depots(store)
    chosen = [m for m in depots.members if isinstance(m, BucketDepot) and depot in (None, m.name)]
    if not chosen:
        what = f"{depot!r} is no bucket of this store" if depot else "this store has no bucket"
        raise StoreError(f"{what}: there is nothing to probe", "`bushcraft store status` shows the depots")
    reports = []
    for member in chosen:
        report = probe(member)
        report.write(root / "probes" / f"{member.name}.json")
        reports.append(asdict(report))
    if json:
        return print_json(reports)
    for about in reports:
        print(f"{about['depot']}  {about['place']}")
        print_table(["", "", ""], [_row(about, key) for key in _FINDINGS] + _measures(about))
    return None


def serve_(
    address: Annotated[str, typer.Argument(help="HOST:PORT of this node, at which the others reach it.")],
    certificate: Annotated[Path | None, typer.Option(help="Speak TLS with this certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, if it is a file of its own.")] = None,
    store: StoreOption = None,
) -> None:
    """Give the other nodes pieces of objects, until it is stopped; only who has $BUSHCRAFT_TOKEN gets any."""
    from bushcraft.store.nodes.cache import Cache
    from bushcraft.store.nodes.peer_server import serve
    from bushcraft.store.settings import read_settings

    where = open_store(store)
    token = os.environ.get("BUSHCRAFT_TOKEN", "").strip()
    if not token:
        raise StoreError("there is no token for the peers", "Set BUSHCRAFT_TOKEN, the same on all nodes")
    settings = read_settings(where.root).cache
    cache = Cache(where.root / settings.directory, int(settings.gib * 2**30)) if settings.gib > 0 else None
    serve(where.depot, address, token, cache, certificate, key)


def _row(about: dict[str, Any], key: str) -> list[str]:
    finding = about[key]
    return [
        key.replace("_", " "),
        {True: "yes", False: "no", None: "not examined"}[finding["value"]],
        finding["reason"],
    ]


def _measures(about: dict[str, Any]) -> list[list[str]]:
    skew = about["clock_skew_seconds"]
    rates = [("put", about["put_bytes_per_second"]), ("get", about["get_bytes_per_second"])]
    return [
        ["clock", "not examined" if skew is None else f"{skew:+.1f} s", ""],
        *([f"{what}, small", f"{1000 * about[f'{what}_seconds']:.0f} ms", ""] for what in ("put", "get")),
        *([f"{what}, large", "not examined" if rate is None else f"{size(rate)}/s", ""] for what, rate in rates),
    ]
