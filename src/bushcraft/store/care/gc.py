"""The only thing in Bushcraft that deletes: what no reference keeps, long after that was noted.

It is off unless `[gc] enabled = true`, and goes in two steps. `mark` writes down, as an object that the reference
`gc/tombstones` names in every depot, what is unreachable, and since when. `sweep` deletes what was noted longer than
`grace_days` ago and is unreachable still. Both refuse rather than guess: a depot that does not answer, one that is
behind, a document that cannot be read, or too few good copies of what is kept.

What is in progress and has no reference yet is kept as well: whatever the files in STORE/runs and STORE/builds name.

    {"format": "bushcraft-tombstones", "version": 1, "objects": {NAME: seconds since the epoch}}
"""

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bushcraft.errors import StoreError
from bushcraft.store.care.copies import NEEDED_COPIES, too_few_copies
from bushcraft.store.depot import OBJECT_NAME, Depot
from bushcraft.store.depots import Depots
from bushcraft.store.links import Closure, Links, closure, register, roots_of

TOMBSTONES = "gc/tombstones"
_DAY = 24 * 3600.0
_NAME = re.compile(OBJECT_NAME.pattern.encode())
_READ_BYTES = 1024 * 1024


@dataclass
class Plan:
    """What is unreachable now."""

    kept: Closure
    tombstones: dict[str, float]
    """Unreachable objects → seconds since the epoch when that was first noted."""
    sizes: dict[str, int]
    """Their bytes, in the largest copy."""
    due: list[str] = field(default_factory=list)
    """Those that were noted longer than the grace ago."""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def due_bytes(self) -> int:
        return sum(self.sizes[name] for name in self.due)


def check_allowed(depots: Depots) -> None:
    """Errors: `StoreError` if the store's settings allow no deletion."""
    if not depots.settings.gc.enabled:
        raise StoreError(
            "gc is off in this store: nothing was deleted", "Set `enabled = true` under [gc] in its store.toml"
        )


def plan(root: Path, depots: Depots, now: float) -> Plan:
    """What a `mark` would note and a `sweep` delete. Errors: `StoreError` for each reason to refuse."""
    settings = depots.settings.gc
    check_allowed(depots)
    _refuse_lag(depots)
    _refuse_silence(depots)
    kept = _kept(root, depots)
    noted = _newest_tombstones(depots)
    sizes = {name: size for name, size in depots.objects() if name not in kept}
    stones = {name: noted.get(name, now) for name in sizes}
    due = [name for name, since in stones.items() if now - since >= settings.grace_days * _DAY and name in noted]
    return Plan(kept, stones, sizes, due)


def mark(depots: Depots, planned: Plan) -> str:
    """Note in every depot what is unreachable; the object that says so. Errors: `StoreError`."""
    return _note(depots, planned.tombstones)


def sweep(
    root: Path,
    depots: Depots,
    planned: Plan,
    allow_single_copy: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Delete what is due, in all depots; how many objects. `progress` hears how many kept objects of how many are read.

    Errors: `StoreError` if a run or a build is going on, or what is kept has not enough good copies: then nothing was
    deleted.
    """
    _refuse_writers(root)
    if planned.due:
        _refuse_few_copies(depots, planned.kept, allow_single_copy, progress)
    kept_now = _kept(root, depots)  # reading the copies may have taken hours
    due = [name for name in planned.due if name not in kept_now]
    for name in due:
        depots.remove_object(name)
    for number, name in depots.history(TOMBSTONES)[1:]:
        depots.remove_ref(TOMBSTONES, number, name)
    return len(due)


def retire(depots: Depots, ref: str, keep: Callable[[int, str], bool]) -> list[tuple[int, str]]:
    """Remove the values (number, object) of a reference that `keep` lets go, in all depots; these.

    The newest value always stays. Their objects stay, too, until `gc` finds them unreachable; their grace begins then,
    also where an earlier `mark` had noted them. Errors: `StoreError` if a depot is behind or does not answer: it would
    bring them back.
    """
    _refuse_lag(depots)
    _refuse_silence(depots)
    gone = [(number, name) for number, name in depots.history(ref)[1:] if not keep(number, name)]
    noted = _newest_tombstones(depots)
    if noted and gone:
        retired = closure(depots, [(ref, name) for _, name in gone])
        _note(depots, {name: since for name, since in noted.items() if name not in retired})
    for number, name in gone:
        depots.remove_ref(ref, number, name)
    return gone


def _note(depots: Depots, tombstones: dict[str, float]) -> str:
    document = {"format": "bushcraft-tombstones", "version": 1, "objects": tombstones}
    name = depots.put_bytes(json.dumps(document, sort_keys=True).encode())
    if name != depots.latest(TOMBSTONES):
        depots.publish(TOMBSTONES, name)
    depots.background.wait()
    for member in depots.members:
        depots.background.catch_up(member)
    return name


def _kept(root: Path, depots: Depots) -> Closure:
    kept = closure(depots, _roots(root, depots))
    for name, error in kept.broken.items():
        raise StoreError(
            f"what {kept.root(name)} keeps is not known: {error.message}",
            "Nothing was deleted. Mend it by `bushcraft store scrub`, or retire the reference",
        )
    return kept


def _roots(root: Path, depots: Depots) -> Iterator[tuple[str, str]]:
    yield from roots_of(depots)
    for path in _in_progress(root):
        for name in sorted(_named(path)):
            if depots.has(name):
                yield str(path.relative_to(root)), name


def _in_progress(root: Path) -> Iterator[Path]:
    """Files that name objects which no reference keeps yet. A ledger names what was retired as well: not that one."""
    for directory in ("runs", "builds"):
        yield from sorted(p for p in (root / directory).rglob("*") if p.is_file() and p.name != "ledger.jsonl")


def _named(path: Path) -> set[str]:
    names: set[str] = set()
    with path.open("rb") as file:
        rest = b""
        while block := file.read(_READ_BYTES):
            names.update(match.decode() for match in _NAME.findall(rest + block))
            rest = block[-63:]
    return names


def _newest_tombstones(depots: Depots) -> dict[str, float]:
    name = depots.latest(TOMBSTONES)
    objects: dict[str, float] = json.loads(depots.read(name))["objects"] if name else {}
    return objects


def _tombstone_links(_: dict[str, Any], __: Depot) -> Links:
    """It names what nothing keeps."""
    return Links()


def _refuse_lag(depots: Depots) -> None:
    for member in depots.members:
        if depots.lags[member.name]:
            raise StoreError(
                f"depot {member.name} is behind: nothing was deleted",
                "Let `bushcraft store replicate` bring it up first",
            )


def _refuse_silence(depots: Depots) -> None:
    for member in depots.members:
        try:
            next(member.objects(), None)
            member.refs()
        except StoreError as error:
            raise StoreError(
                f"depot {member.name} cannot be listed: {error.message}; nothing was deleted",
                "Wait until it answers, or take it out of store.toml",
            ) from None


def _refuse_writers(root: Path) -> None:
    """What they write may be the same bytes as something that is due, without a reference yet."""
    for lock in sorted((root / "runs").glob("*/lock")):
        with lock.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"run {lock.parent.name!r} is going on: nothing was deleted", "Sweep when nothing is being written"
                ) from None


def _refuse_few_copies(
    depots: Depots, kept: Closure, allow_single_copy: bool, progress: Callable[[int, int], None]
) -> None:
    """Every kept object must have as many good copies as the policy wants, and two at two providers at least."""
    if len(depots.members) == 1 and not allow_single_copy:
        raise StoreError(
            "the store is a single depot, so that what is kept has one copy: nothing was deleted",
            "Add a depot by `bushcraft store init --depot`, or accept it by --allow-single-copy",
        )
    single = len(depots.members) == 1
    needed = "one" if single else NEEDED_COPIES
    names, n_done = iter(kept), 0
    while batch := list(islice(names, 256)):
        for name, found in too_few_copies(depots, batch, single):
            raise StoreError(
                f"object {name}, which {kept.root(name)} keeps, has {found}, and needs {needed}: nothing was deleted",
                "Mend it by `bushcraft store scrub`, or bring it to other depots by `bushcraft store replicate --all`",
            )
        n_done += len(batch)
        progress(n_done, len(kept))


register("bushcraft-tombstones", _tombstone_links)
