"""What a store is made of: `STORE/store.toml`. A store without one is a single local depot.

    copies = 2                       # depots that have an object before a reference to it is published
    off_provider = 1                 # of these, at another provider than the first depot

    [[depots]]                       # the nearest first
    name = "local"
    url = "depot"                    # a directory, from the store's root
    provider = "here"

    [[depots]]
    name = "r2"
    url = "s3://bucket/prefix"
    provider = "cloudflare"
    options = { endpoint = "https://…", credentials = "R2" }

    [cache]                          # verified copies of what was read from elsewhere
    gib = 100

    [gc]
    enabled = true
    grace_days = 7

Secrets are never in it: they come from the environment or from the provider's usual chain of credentials.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bushcraft.errors import StoreError
from bushcraft.store.durable import machine_errors, write_atomically

FILE = "store.toml"
_SECRET = ("secret", "password", "token", "access_key", "account_key", "private_key", "sas")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DepotSettings(_Section):
    """One depot."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """What the store calls it."""
    url: str = Field(min_length=1)
    """A directory (from the store's root), or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix."""
    provider: str = "here"
    """Who could lose it: copies at two providers survive the loss of one."""
    complete: bool = True
    """Whether all objects of the store belong there; false for a disk that cannot hold them: it has what is written
    to it, and what it lacks is no damage."""
    options: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Of the endpoint: endpoint, region, virtual_hosted, allow_http, credentials."""

    @field_validator("options")
    @classmethod
    def _holds_no_secret(cls, options: dict[str, str | bool | int | float]) -> dict[str, str | bool | float]:
        for key in options:
            if any(word in key.lower() for word in _SECRET):
                raise ValueError(
                    f"options.{key} is a secret: put it into the environment, and name its prefix by credentials"
                )
        return options

    @property
    def is_local(self) -> bool:
        return "://" not in self.url


class CacheSettings(_Section):
    """Verified copies on this node's disk of what was read from elsewhere."""

    gib: float = Field(default=0, ge=0)
    """Its size; 0 is no cache."""
    directory: str = "cache"
    """From the store's root: a fast disk of this node."""


class GcSettings(_Section):
    """What `bushcraft store gc` may do."""

    enabled: bool = False
    """Whether it may delete at all."""
    grace_days: float = Field(default=7, ge=0)
    """Between marking an object and deleting it."""


class StoreSettings(_Section):
    """All of store.toml."""

    copies: int = Field(default=1, ge=1)
    """Depots that have an object before a reference to it is published."""
    off_provider: int = Field(default=0, ge=0)
    """Of these, how many at another provider than the first depot."""
    depots: tuple[DepotSettings, ...] = (DepotSettings(name="local", url="depot"),)
    """The nearest first."""
    cache: CacheSettings = CacheSettings()
    gc: GcSettings = GcSettings()

    @model_validator(mode="after")
    def _policy_can_be_kept(self) -> Self:
        names = [depot.name for depot in self.depots]
        if len(set(names)) < len(names) or not names:
            raise ValueError("each depot needs a name of its own, and there must be one")
        if self.copies > len(names):
            raise ValueError(f"copies = {self.copies} needs as many depots, and there are {len(names)}")
        away = sum(depot.provider != self.depots[0].provider for depot in self.depots)
        if self.off_provider > min(away, self.copies):
            raise ValueError(
                f"off_provider = {self.off_provider} needs so many of the copies at another provider than "
                f"{self.depots[0].provider!r}, and there are {min(away, self.copies)}"
            )
        return self

    def kept(self, names: Mapping[str, object] | set[str]) -> bool:
        """Whether copies in the depots of these names are enough for the policy."""
        there = [depot for depot in self.depots if depot.name in names]
        away = sum(depot.provider != self.depots[0].provider for depot in there)
        return len(there) >= self.copies and away >= self.off_provider

    def is_complete(self, name: str) -> bool:
        """Whether all objects belong into the depot of that name."""
        return all(depot.complete for depot in self.depots if depot.name == name)

    def to_toml(self) -> str:
        """The file's text."""
        lines = [f"copies = {self.copies}", f"off_provider = {self.off_provider}"]
        for depot in self.depots:
            lines += [
                "",
                "[[depots]]",
                *(f"{key} = {_toml(getattr(depot, key))}" for key in ("name", "url", "provider")),
            ]
            if not depot.complete:
                lines.append("complete = false")
            if depot.options:
                lines.append("options = { " + ", ".join(f"{k} = {_toml(v)}" for k, v in depot.options.items()) + " }")
        lines += ["", "[cache]", f"gib = {self.cache.gib:g}", f"directory = {_toml(self.cache.directory)}"]
        lines += ["", "[gc]", f"enabled = {_toml(self.gc.enabled)}", f"grace_days = {self.gc.grace_days:g}"]
        return "\n".join(lines) + "\n"


def read_settings(root: Path) -> StoreSettings:
    """The settings of the store at `root`. Errors: `StoreError` that says what is wrong in the file."""
    path = root / FILE
    with machine_errors("read", path):
        text = path.read_text() if path.exists() else ""
    try:
        return StoreSettings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StoreError(f"{path} is not valid TOML: {error}", "Correct it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the policy"
        raise StoreError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}", "Correct it") from None


def write_settings(root: Path, settings: StoreSettings) -> None:
    """Replace the file. Errors: `StoreError`."""
    write_atomically(root / FILE, settings.to_toml().encode())


def _toml(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{value:g}"
