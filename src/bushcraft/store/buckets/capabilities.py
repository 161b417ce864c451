"""What an endpoint really does, as a probe found it: the report, its file, and what a depot may rely on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bushcraft.errors import StoreError
from bushcraft.store.durable import machine_errors, write_atomically


@dataclass(frozen=True)
class Finding:
    """True or false as it was seen, or None: not examined. In any case with the reason, if there is more to say."""

    value: bool | None
    reason: str = ""


@dataclass(frozen=True)
class ProbeReport:
    """What was found out about one depot. Times in seconds, throughput in bytes a second."""

    depot: str
    place: str
    time: float
    """When, in seconds since 1970."""
    range: Finding
    """Gives the bytes of a range, and nothing else."""
    conditional_put: Finding
    """Refuses to create what is there (If-None-Match)."""
    multipart: Finding
    list_after_put: Finding
    """A listing shows what was just put."""
    versioning: Finding
    """What is deleted stays as an older version."""
    object_lock: Finding
    """Refuses to delete what is locked."""
    checksum_enforced: Finding
    """Refuses bytes that do not have the checksum that came with them."""
    clock_skew_seconds: float
    """How far the server's clock is ahead of ours, to about a second."""
    put_seconds: float
    get_seconds: float
    put_bytes_per_second: float | None
    get_bytes_per_second: float | None

    def write(self, path: Path) -> None:
        """Errors: `StoreError`."""
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "ProbeReport":
        """Errors: `StoreError` if there is none or it cannot be read."""
        with machine_errors("read", path):
            try:
                return cls.from_json(json.loads(path.read_bytes()))
            except FileNotFoundError:
                raise StoreError(f"there is no probe report {path}", "Run `bushcraft store probe`") from None
            except (ValueError, KeyError, TypeError):
                raise StoreError(f"{path} is damaged", "Run `bushcraft store probe` again") from None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProbeReport":
        values: dict[str, Any] = {field.name: record[field.name] for field in fields(cls)}
        findings = {field.name: Finding(**values[field.name]) for field in fields(cls) if field.type is Finding}
        return cls(**(values | findings))


@dataclass(frozen=True)
class Capabilities:
    """What a depot may rely on. Without a probe: parts and ranges, which the depot notices where they fail."""

    range: bool = True
    multipart: bool = True
    conditional_put: bool = False

    @classmethod
    def of(cls, report: ProbeReport) -> "Capabilities":
        """No more than was found."""
        return cls(report.range.value is True, report.multipart.value is True, report.conditional_put.value is True)
