"""What every benchmark writes: the figures on the terminal, one JSON file in `benchmarks/results/`.

    {"benchmark", "quick", "commit", "date", "machine",
     "rows": [{"claim", "unit", "ours", "peer", "peer_name", "limit", "ratio", "target", "holds"}]}

A target that was missed stays in the file with `"holds": false`.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One claim and what was measured for it."""

    claim: str
    unit: str
    ours: float | str
    peer: float | str | None = None
    peer_name: str | None = None
    limit: float | str | None = None
    """What no program could beat on this machine (the same bytes copied by numpy, say)."""
    ratio: float | None = None
    """Ours ÷ peer."""
    target: str | None = None
    holds: bool | None = None


def row(
    claim: str,
    unit: str,
    ours: float,
    *,
    peer: float | None = None,
    peer_name: str | None = None,
    limit: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row of numbers, its ratio and whether its target (`at_least` or `at_most`, of ours) holds."""
    target, holds = None, None
    if at_least is not None:
        target, holds = f"≥ {at_least:g}", ours >= at_least
    elif at_most is not None:
        target, holds = f"≤ {at_most:g}", ours <= at_most
    ratio = _round(ours / peer) if peer else None
    return Row(claim, unit, _round(ours), _round(peer), peer_name, _round(limit), ratio, target, holds)


def write(benchmark: str, rows: Sequence[Row], quick: bool) -> Path:
    """Print the table and write `benchmarks/results/{benchmark}.json`; its path."""
    show(benchmark, rows)
    document = {
        "benchmark": benchmark,
        "quick": quick,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rows": [asdict(r) for r in rows],
    }
    path = HERE / "results" / f"{benchmark}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def show(benchmark: str, rows: Sequence[Row]) -> None:
    """Print the rows: a claim, and its figures in columns below it."""
    print(f"\n{benchmark}")
    for r in rows:
        figures = [f"ours {r.ours} {r.unit}"]
        figures.append("" if r.peer is None else f"{r.peer_name} {r.peer}")
        figures.append("" if r.ratio is None else f"ours ÷ peer {r.ratio}")
        figures.append("" if r.limit is None else f"limit {r.limit}")
        figures.append("" if r.target is None else f"target {r.target}: {'holds' if r.holds else 'MISSED'}")
        print(f"{r.claim}\n    " + "   ".join(filter(None, figures)))


def machine() -> dict[str, Any]:
    """The facts about this machine that explain its figures."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def commit() -> str:
    """The commit that was measured, with `-dirty` if the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _round(value: float | None) -> float | None:
    """Four significant digits: no measurement here is better than that."""
    return None if value is None else float(f"{value:.4g}")
