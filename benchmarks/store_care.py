"""Looking after a store: what a scrub finds and how fast, and how a store of a million objects answers.

python benchmarks/store_care.py [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from blake3 import blake3
from result import Row, row, write

from bushcraft.store.care.scrub import scrub
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, StoreSettings, write_settings
from bushcraft.store.workspace import Store

MIB = 2**20
DAMAGES = 100
INTERACTIVE_SECONDS = 2.0
BOUNDED_MIB = 400
"""Of which about 100 are Python and its modules."""
_MEMORY = r"""
import atexit, re, sys
from pathlib import Path
most = lambda: re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]
atexit.register(lambda: print("KiB", most(), file=sys.stderr))
"""
"""Not what `wait4` says: that begins with the memory of the process that forked."""
_COMMAND = """
import runpy
runpy.run_module("bushcraft.cli", run_name="__main__")
"""
_PUBLISH = """
from pathlib import Path
from bushcraft.store.workspace import Store
depot = Store.open(Path(sys.argv[1])).depot
depot.publish("new", depot.put_bytes(b"new"))
"""
_CLOSURE = """
from pathlib import Path
from bushcraft.store.links import closure, roots_of
from bushcraft.store.workspace import Store
depot = Store.open(Path(sys.argv[1])).depot
print(len(closure(depot, roots_of(depot))))
"""


def care(quick: bool) -> list[Row]:
    """All rows of this module."""
    return [*damages(quick), *scrub_speed(quick), *many_objects(quick)]


def damages(quick: bool) -> list[Row]:
    """100 random damages over three depots: flipped bits, truncated and deleted objects, deleted references."""
    counted, repaired, wrong = [], [], 0
    for seed in range(2 if quick else 10):
        with tempfile.TemporaryDirectory() as folder:
            store = _three_depots(Path(folder))
            contents = _fill(store, 150, seed)
            _damage(store, Random(seed))
            report = scrub(store.root, store.depot)
            counted.append(report.damages)
            repaired.append(sum(depot.repaired for depot in report.depots))
            wrong += sum(member.read(name) != data for member in store.depot.members for name, data in contents.items())
    about = f"100 random damages over 3 depots, {len(counted)} times"
    return [
        row(f"{about}: most that a scrub counted", "damages", max(counted), at_most=DAMAGES),
        row(f"{about}: fewest that a scrub counted", "damages", min(counted), at_least=DAMAGES),
        row(f"{about}: fewest that it repaired", "copies", min(repaired), at_least=DAMAGES),
        row(f"{about}: copies that read back wrong afterwards", "copies", wrong, at_most=0),
    ]


def scrub_speed(quick: bool) -> list[Row]:
    """A scrub of large objects that lie in the page cache, beside reading and hashing them in one process."""
    n_objects, size = (8, 16 * MIB) if quick else (32, 32 * MIB)
    with tempfile.TemporaryDirectory() as folder:
        store = _three_depots(Path(folder))
        for number in range(n_objects):
            store.depot.put_bytes(Random(number).randbytes(size))
        for member in store.depot.members:
            store.depot.background.catch_up(member)
        _hash_seconds(store)  # what was written directly is not in the page cache yet
        began = time.monotonic()
        assert scrub(store.root, store.depot).damages == 0
        seconds = time.monotonic() - began
        plain = _hash_seconds(store)
    n_bytes = 3 * n_objects * size
    name = "read and BLAKE3, one thread"
    return [
        row(
            "scrub of three depots on one disk",
            "MiB/s",
            n_bytes / seconds / MIB,
            peer=n_bytes / plain / MIB,
            peer_name=name,
        )
    ]


def many_objects(quick: bool) -> list[Row]:
    """Each command as a process of its own: seconds, and the most memory that it had."""
    n = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = _make_objects(LocalDepot.create(root / "depot"), n)
        depot = Store.create(root).depot
        listing = {"format": "bushcraft-folder", "files": [{"object": name} for name in names]}
        depot.publish("all", depot.put_bytes(json.dumps(listing).encode()))
        began = time.monotonic()
        subprocess.run(f"find {root}/depot/objects -type f | wc -l", shell=True, check=True, capture_output=True)
        find = time.monotonic() - began
        timed = {
            "status": _timed(_COMMAND, "store", "status", "--store", folder),
            "verify --sample 1000": _timed(_COMMAND, "store", "verify", "--sample", "1000", "--store", folder),
            "open, put and publish": _timed(_PUBLISH, folder),
        }
        closure_seconds, closure_mib = _timed(_CLOSURE, folder)
    rows = []
    for what, (seconds, mib) in timed.items():
        peer = {"peer": find, "peer_name": "find | wc -l"} if what == "status" else {}
        rows.append(row(f"{n:,} objects: {what}", "s", seconds, at_most=INTERACTIVE_SECONDS, **peer))
        rows.append(row(f"{n:,} objects: {what}, most memory", "MiB", mib, at_most=BOUNDED_MIB))
    return [
        *rows,
        row(f"{n:,} objects in one list: what a reference keeps (gc, drill)", "s", closure_seconds),
        row(f"{n:,} objects in one list: what a reference keeps (gc, drill), most memory", "MiB", closure_mib),
    ]


def _three_depots(root: Path) -> "_Opened":
    """Two directories here, one elsewhere; two copies, one of them off-provider."""
    places = (("local", "depot", "here"), ("b", "b", "here"), ("c", "c", "there"))
    depots = tuple(DepotSettings(name=name, url=url, provider=provider) for name, url, provider in places)
    for one in depots:
        LocalDepot.create(root / one.url, one.name)
    write_settings(root, StoreSettings(copies=2, off_provider=1, depots=depots))
    store = Store.create(root)
    assert isinstance(store.depot, Depots)
    return _Opened(store.root, store.depot)


class _Opened:
    """A store whose depot is a set of directories."""

    def __init__(self, root: Path, depot: Depots) -> None:
        self.root, self.depot = root, depot
        self.directories = [member for member in depot.members if isinstance(member, LocalDepot)]


def _fill(store: _Opened, n: int, seed: int) -> dict[str, bytes]:
    random = Random(seed)
    data = [random.randbytes(random.randrange(1, 20_000)) for _ in range(n)]
    contents = {store.depot.put_bytes(one): one for one in data}
    for number, name in enumerate(contents):
        if number % 5 == 0:
            store.depot.publish(f"things/{number // 50}", name)
    store.depot.background.wait()
    for member in store.depot.members:
        store.depot.background.catch_up(member)
    return contents


def _damage(store: _Opened, random: Random) -> None:
    """A thing is damaged in one depot only, so that a good copy is left."""
    first = store.directories[0]
    names = sorted(name for name, _ in first.objects())
    values = sorted((ref, *value) for ref in first.refs() for value in first.ref_values(ref))
    for name in random.sample(names, DAMAGES - 20):
        random.choice((_flip, _truncate, _delete))(random.choice(store.directories).path(name), random)
    for ref, number, name in random.sample(values, 20):
        random.choice(store.directories).remove_ref(ref, number, name)


def _flip(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def _delete(path: Path, _: Random) -> None:
    path.unlink()


def _hash_seconds(store: _Opened) -> float:
    began = time.monotonic()
    for member in store.directories:
        for name, _ in member.objects():
            assert blake3(member.path(name).read_bytes()).hexdigest() == name
    return time.monotonic() - began


def _make_objects(depot: LocalDepot, n: int) -> list[str]:
    """Tiny ones, without the fsyncs of a put: only how many there are matters here."""
    for prefix in range(256):
        (depot.root / "objects" / f"{prefix:02x}").mkdir(exist_ok=True)
    names = []
    for number in range(n):
        data = number.to_bytes(8, "little")
        name = blake3(data).hexdigest()
        descriptor = os.open(f"{depot.root}/objects/{name[:2]}/{name[2:]}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, data)
        os.close(descriptor)
        names.append(name)
    return names


def _timed(program: str, *words: str) -> tuple[float, float]:
    """Seconds of a process of its own, and the MiB that it had at most."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _MEMORY + program, *words], capture_output=True, text=True, check=True)
    return time.monotonic() - began, int(done.stderr.rpartition("KiB ")[2]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="100,000 objects")
    chosen = options.parse_args()
    write("store_care", care(chosen.quick), chosen.quick)


if __name__ == "__main__":
    main()
