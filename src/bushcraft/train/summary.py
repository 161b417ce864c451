"""A run in a few numbers, from its ledger alone."""

import fcntl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bushcraft.ledger.events import Event
from bushcraft.ledger.goodput import goodput
from bushcraft.ledger.ledger import read_ledger
from bushcraft.store.durable import machine_errors
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import changed_keys, present_recipe


@dataclass(frozen=True)
class RunSummary:
    """What `run list` and `run show` tell."""

    name: str
    state: str
    """running, finished, interrupted (somebody asked) or stopped (nobody did: it was killed or it failed)."""
    position: int
    sequences: int
    step: int
    loss: float | None
    """Nats a token, of the last step."""
    bits_per_byte: float | None
    """Of the last evaluation on held-out text."""
    checkpoint: str | None
    restarts: int
    started: float
    """Seconds since 1970."""
    seconds: float
    """From the first start to the last event."""
    goodput: float
    """Share of that time in steps that count, 0 to 1."""
    time_shares: dict[str, float]
    """Per cent of that time by kind; they sum to 100."""


def runs(directory: Path) -> list[str]:
    """The names of all runs, sorted. Errors: `StoreError`."""
    with machine_errors("read", directory):
        found = directory.iterdir() if directory.exists() else ()
        return sorted(run.name for run in found if (run / "ledger.jsonl").exists())


def is_finished(directory: Path, recipe: Recipe) -> bool:
    """Whether the recipe's run has come to its end. Errors: `RunError` if it was another recipe's run."""
    name = recipe.run.name
    with machine_errors("read", directory / name):
        if not (directory / name / "ledger.jsonl").exists():
            return False
    events = read_ledger(directory / name, name)
    if not events or events[-1].type != "finished":
        return False
    changed_keys(present_recipe(events, name), recipe)
    return True


def summarise(directory: Path, name: str) -> RunSummary:
    """Read the run `name` below `directory`. Errors: `RunError`, `StoreError`."""
    events = read_ledger(directory / name, name)
    steps = [event for event in events if event.type == "step"]
    last = events[-1] if events else None
    spent = goodput(events)
    return RunSummary(
        name=name,
        state="running" if _is_locked(directory / name / "lock") else _end_state(last),
        position=_last(events, "position") or 0,
        sequences=events[0].data["sequences"] if events else 0,
        step=steps[-1].data["step"] if steps else 0,
        loss=steps[-1].data["loss"] if steps else None,
        bits_per_byte=_last_data(events, "evaluation", "bits_per_byte"),
        checkpoint=_last_data(events, "checkpoint", "manifest"),
        restarts=last.generation if last else 0,
        started=events[0].wall if events else time.time(),
        seconds=spent.total,
        goodput=spent.share,
        time_shares=spent.shares(),
    )


def _end_state(last: Event | None) -> str:
    ends = {"finished": "finished", "interrupted": "interrupted"}
    return ends.get(last.type, "stopped") if last else "stopped"


def _is_locked(lock: Path) -> bool:
    """Whether a process holds the run."""
    with machine_errors("open", lock):
        if not lock.exists():
            return False
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


def _last(events: list[Event], attribute: str) -> Any:
    return next((getattr(e, attribute) for e in reversed(events) if e.type in {"step", "start", "finished"}), None)


def _last_data(events: list[Event], type_: str, key: str) -> Any:
    found = (e.data[key] for e in reversed(events) if e.type == type_ and key in e.data and "unusable" not in e.data)
    return next(found, None)
