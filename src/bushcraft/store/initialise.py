"""Make a store, or give it further depots."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bushcraft.errors import StoreError
from bushcraft.store.durable import machine_errors, make_directory
from bushcraft.store.open_depots import create_member
from bushcraft.store.settings import StoreSettings, read_settings, write_settings

OptionValue = str | bool | int | float


def initialise(
    root: Path,
    urls: Mapping[str, str],
    providers: Mapping[str, str],
    options: Mapping[str, Mapping[str, OptionValue]],
    copies: int | None = None,
    off_provider: int | None = None,
    partial: Collection[str] = (),
) -> StoreSettings:
    """Write the settings of the store at `root`, after its depots were made or found; what is not given stays.

    Depots named by `partial` have only what is written to them.

    Errors: `StoreError` if the policy cannot be kept, a name is unknown, or a new depot cannot be made: then the
    settings are as they were.
    """
    before = read_settings(root)
    after = _changed(before, urls, providers, options, copies, off_provider, partial)
    known = {one.name: one for one in before.depots}
    for one in after.depots:
        if one.is_local or known.get(one.name) != one:
            create_member(root, one)
    with machine_errors("create", root):
        for directory in ("runs", "builds"):
            make_directory(root / directory)
    write_settings(root, after)
    return after


def _changed(
    before: StoreSettings,
    urls: Mapping[str, str],
    providers: Mapping[str, str],
    options: Mapping[str, Mapping[str, OptionValue]],
    copies: int | None,
    off_provider: int | None,
    partial: Collection[str],
) -> StoreSettings:
    depots: dict[str, dict[str, Any]] = {one.name: one.model_dump() for one in before.depots}
    for name, url in urls.items():
        depots.setdefault(name, {"name": name})["url"] = url
    for name in (*providers, *options, *partial):
        if name not in depots:
            raise StoreError(
                f"there is no depot {name!r}", f"There are {', '.join(depots)}; --depot {name}=URL adds it"
            )
    for name, provider in providers.items():
        depots[name]["provider"] = provider
    for name, more in options.items():
        depots[name]["options"] = {**depots[name].get("options", {}), **more}
    for name in partial:
        depots[name]["complete"] = False
    policy = {"copies": copies, "off_provider": off_provider}
    document = before.model_dump() | {key: value for key, value in policy.items() if value is not None}
    try:
        return StoreSettings.model_validate(document | {"depots": list(depots.values())})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise StoreError(
            f"the store cannot be so: {where + ': ' if where else ''}{what}", "Nothing was changed"
        ) from None
