"""`bushcraft store verify|scrub|drill`: is everything there, and whole?"""

from collections.abc import Iterable
from dataclasses import asdict
from random import Random
from typing import Annotated, Any

import typer

from bushcraft.cli.options import JsonOption, StoreOption, print_json, print_table
from bushcraft.cli.store_options import bar, counted, know_links, open_depots, size
from bushcraft.errors import StoreError
from bushcraft.store.depot import OBJECT_NAME
from bushcraft.store.depots import Depots

_SHOWN = 20
"""Objects that are named on a terminal; `--json` names all."""


def register(app: typer.Typer) -> None:
    """Add the commands to `bushcraft store`."""
    app.command()(verify)
    app.command("scrub")(scrub_)
    app.command("drill")(drill_)


def verify(
    name: Annotated[str | None, typer.Argument(help="An object or a reference; everything by default.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many objects, chosen at random.")] = None,
    refs: Annotated[bool, typer.Option("--refs", help="All that references keep, and whether it is there.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Read objects in every depot against their names; mend nothing. Exit code 1 if one is damaged or missing."""
    from bushcraft.store.care.scrub import check

    _, depots = open_depots(store)
    if sum((name is not None, sample is not None, refs)) > 1:
        raise StoreError("verify takes a NAME, --sample or --refs", "Give one of them")
    with bar("verifying") as tell:
        names = _names(depots, name, sample, refs)
        report = check(depots, names, lambda n, n_bytes: tell(None, f"{n:,} objects, {size(n_bytes)}"))
    _print_report(report, json, ("checked", "missing", "corrupt", "late", "bytes"), "damaged or missing")
    raise typer.Exit(0 if report.is_well else 1)


def scrub_(
    depot: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    gib: Annotated[float | None, typer.Option(min=0, help="Stop after so many GiB; the next one goes on.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so long; the next one goes on.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Look through all depots and mend what is damaged or missing. Exit code 1 if something is lost."""
    from bushcraft.store.care.scrub import Budget, scrub

    root, depots = open_depots(store)
    unlimited = float("inf")
    budget = Budget(unlimited if gib is None else gib * 2**30, unlimited if minutes is None else minutes * 60)
    with bar("scrubbing") as tell:
        report = scrub(root, depots, depot, budget, lambda share, n_bytes: tell(share, size(n_bytes)))
    columns = ("checked", "missing", "corrupt", "references", "markers", "late", "repaired", "lost", "bytes", "seconds")
    _print_report(report, json, columns, "lost or not repaired")
    if not json:
        where = "all objects were looked at" if report.finished else "the budget is spent; the next scrub goes on"
        print(f"{counted(report.damages, 'damage')}, {sum(d.repaired for d in report.depots)} repaired; {where}")
    raise typer.Exit(0 if report.is_well else 1)


def drill_(
    lose: Annotated[str, typer.Option(help="The depot that is lost.")],
    sample: Annotated[int | None, typer.Option(min=1, help="Read only so many objects, chosen at random.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Read all that references keep without one depot. Exit code 1 if something would be lost."""
    from bushcraft.store.care.drill import drill

    root, depots = open_depots(store)
    know_links()
    with bar(f"without {lose}") as tell:
        report = drill(
            root, depots, lose, sample, None, lambda n, n_all: tell(n / max(1, n_all), f"{n:,} of {n_all:,}")
        )
    if json:
        print_json(asdict(report))
    else:
        if report.losses:
            rows = [[loss.reference, loss.object, loss.why] for loss in report.losses[:_SHOWN]]
            print_table(["reference", "object", "why it would be lost"], rows)
        read = f"{report.verified:,} of {counted(report.objects, 'object')}, {size(report.bytes)}, read without {lose}"
        print(f"{counted(report.references, 'reference')}: {read}: {len(report.losses) or 'nothing'} would be lost")
    raise typer.Exit(1 if report.losses else 0)


def _names(depots: Depots, name: str | None, n_sample: int | None, refs: bool) -> Iterable[str]:
    if refs:
        return _kept(depots)
    if n_sample is not None:
        from bushcraft.store.care.sample import sample

        return sample(depots, n_sample, Random())
    if name is None:
        return (found for found, _ in depots.objects())
    if OBJECT_NAME.fullmatch(name):
        return [name]
    values = [found for _, found in depots.history(name)]
    if not values:
        raise StoreError(
            f"there is no object and no reference {name!r}", "`bushcraft store ls /refs` shows the references"
        )
    return values


def _kept(depots: Depots) -> Iterable[str]:
    """What references keep. Documents that cannot be read are told by the check that follows."""
    from bushcraft.store.links import closure, roots_of

    know_links()
    return closure(depots, roots_of(depots))


def _print_report(report: Any, json: bool, columns: tuple[str, ...], bad: str) -> None:
    about = [asdict(depot) | {"damages": depot.damages} for depot in report.depots]
    if json:
        print_json({"depots": about, "damages": report.damages, "lost": report.lost, "finished": report.finished})
        return
    rows = [[depot["depot"], *(_cell(depot, column) for column in columns), depot["error"] or ""] for depot in about]
    print_table(["depot", *columns, ""], rows, columns)
    names = [(depot.depot, name) for depot in report.depots for name in (*depot.lost, *depot.not_repaired)]
    for depot, name in names[:_SHOWN]:
        print(f"{bad} in {depot}: object {name}")
    if len(names) > _SHOWN:
        print(f"and {len(names) - _SHOWN:,} more; --json names all")


def _cell(depot: dict[str, Any], column: str) -> str:
    value = depot[column]
    if column == "bytes":
        return size(value)
    if column == "lost":
        return f"{len(value):,}"
    return f"{value:.1f}" if column == "seconds" else f"{value:,}"
