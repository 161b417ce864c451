"""The cache of a node gives what was kept or nothing, stays within its budget, and never fails a read."""

import logging
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.store.depot import object_name
from bushcraft.store.nodes import cache_usage
from bushcraft.store.nodes.cache import Cache
from bushcraft.store.nodes.rendezvous_hash import BLOCK

NAME = object_name(b"an object")
MIB = 1024 * 1024


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 64 * MIB)


def entries(cache: Cache) -> list[Path]:
    return sorted(cache.root.glob("??/*"))


def fill(root: Path, seed: int) -> None:
    """What one of many processes does: keep and fetch, always right or nothing."""
    cache = Cache(root, MIB)
    for number in range(200):
        begin = (seed * 37 + number) % 100 * 10_000
        data = bytes([begin // 10_000]) * 10_000
        cache.keep(NAME, begin, begin + 10_000, data)
        assert cache.fetch(NAME, begin, begin + 10_000) in (data, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(begin=st.integers(0, 3 * BLOCK), size=st.sampled_from([0, 1, 1000, BLOCK, BLOCK + 1, 3 * BLOCK - 7]))
def test_what_was_kept_is_fetched_also_by_another_process_and_in_many_pieces(
    cache: Cache, begin: int, size: int
) -> None:
    data = os.urandom(size)
    cache.blame(NAME, begin, begin + size)
    cache.keep(NAME, begin, begin + size, data)
    assert cache.fetch(NAME, begin, begin + size) == data
    assert Cache(cache.root, cache.max_bytes).fetch(NAME, begin, begin + size) == data


def test_what_was_not_kept_is_none(cache: Cache) -> None:
    cache.keep(NAME, 0, 5, b"hello")
    assert cache.fetch(NAME, 0, 4) is None
    assert cache.fetch(object_name(b"other"), 0, 5) is None
    assert cache.fetch(NAME, 0, 5) == b"hello"
    assert (cache.stats().hits, cache.stats().misses) == (1, 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
    ],
    ids=["flipped", "truncated", "empty", "garbage", "longer"],
)
def test_damage_is_noticed_at_the_first_use_of_a_process_and_removed(
    cache: Cache, damage: Callable[[Path], None]
) -> None:
    cache.keep(NAME, 0, 1000, bytes(1000))
    damage(entries(cache)[0])
    again = Cache(cache.root, cache.max_bytes)
    assert again.fetch(NAME, 0, 1000) is None
    assert again.lend(NAME, 0, 1000) is None
    assert not entries(cache)
    again.keep(NAME, 0, 1000, bytes(1000))
    assert again.fetch(NAME, 0, 1000) == bytes(1000)


def test_an_entry_under_anothers_name_is_noticed(cache: Cache) -> None:
    cache.keep(NAME, 0, 1000, bytes(1000))
    cache.keep(NAME, 1000, 2000, b"x" * 1000)
    one, other = (next(p for p in entries(cache) if p.name.endswith(end)) for end in ("-1000", "-2000"))
    one.write_bytes(other.read_bytes())
    assert Cache(cache.root, cache.max_bytes).fetch(NAME, 0, 1000) is None


def test_blame_forgets_one_range(cache: Cache) -> None:
    cache.keep(NAME, 0, 5, b"wrong")
    cache.keep(NAME, 5, 10, b"right")
    cache.blame(NAME, 0, 5)
    assert cache.fetch(NAME, 0, 5) is None
    assert cache.fetch(NAME, 5, 10) == b"right"
    assert cache.stats().bytes == 5 + 16


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * 1016)
    for number in range(10):
        cache.keep(NAME, number * 1000, number * 1000 + 1000, bytes(1000))
    for number in (0, 3):
        assert cache.fetch(NAME, number * 1000, number * 1000 + 1000) is not None
    cache.keep(NAME, 10_000, 11_000, bytes(1000))
    cache.keep(NAME, 11_000, 12_000, bytes(1000))
    left = [n for n in range(12) if cache.fetch(NAME, n * 1000, n * 1000 + 1000) is not None]
    assert left[:2] == [0, 3]
    assert left[-2:] == [10, 11]
    assert not {1, 2} & set(left)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 2000), max_size=60), sample=st.integers(4, 20))
def test_files_stay_within_the_budget_however_small_the_sample(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], sample: int
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), 20_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_usage, "SAMPLE", sample)
        for number, size in enumerate(sizes):
            cache.keep(NAME, number * 5000, number * 5000 + size, bytes(size))
            used = sum(path.stat().st_size for path in entries(cache))
            assert used == cache.stats().bytes <= 20_000


def test_what_is_larger_than_the_cache_does_not_empty_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    cache.keep(NAME, 0, 5, b"small")
    cache.keep(NAME, 0, 20_000, bytes(20_000))
    assert cache.fetch(NAME, 0, 5) == b"small"


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 2048, b"\x7f" * 2048, None])
def test_a_damaged_count_is_counted_anew(cache: Cache, damage: bytes | None) -> None:
    cache.keep(NAME, 0, 1000, bytes(1000))
    usage = cache.root / "usage"
    usage.unlink()
    if damage is not None:
        usage.write_bytes(damage)
    cache.keep(NAME, 1000, 2000, bytes(1000))
    assert cache.stats().bytes == 2032


def test_a_count_that_is_too_high_is_put_right_before_anything_goes(cache: Cache) -> None:
    for begin in (0, 1000):
        cache.keep(NAME, begin, begin + 1000, bytes(1000))
    counts = list(struct.unpack("<256q", (cache.root / "usage").read_bytes()))
    counts[7] += cache.max_bytes
    (cache.root / "usage").write_bytes(struct.pack("<256q", *counts))
    cache.keep(NAME, 2000, 3000, bytes(1000))
    assert len(entries(cache)) == 3
    assert cache.stats().bytes == 3 * 1016


def test_strange_files_are_evicted_like_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    (tmp_path / "07").mkdir()
    (tmp_path / "07" / "core").write_bytes(bytes(9_000))
    (tmp_path / "07" / "folder").mkdir()
    for number in range(20):
        cache.keep(NAME, number * 1000, number * 1000 + 1000, bytes(1000))
    assert not (tmp_path / "07" / "core").exists()
    assert cache.fetch(NAME, 19_000, 20_000) == bytes(1000)


def test_a_full_disk_costs_one_line_and_no_read(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    cache.keep(NAME, 0, 1000, bytes(1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # what is written is cut short, then refused
    try:
        with caplog.at_level(logging.WARNING):
            for begin in (5000, 20_000):
                cache.keep(NAME, begin, begin + 10_000, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(caplog.messages) == 1
    assert str(cache.root) in caplog.messages[0]
    assert cache.fetch(NAME, 5000, 15_000) is None
    assert cache.fetch(NAME, 0, 1000) == bytes(1000)
    assert not list((cache.root / "incoming").iterdir())


def test_a_place_that_cannot_be_written_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", MIB)
    cache.keep(NAME, 0, 5, b"hello")
    assert cache.fetch(NAME, 0, 5) is None
    cache.blame(NAME, 0, 5)
    assert cache.stats().bytes == 0
    assert len(caplog.messages) == 1


def test_a_cache_that_was_removed_meanwhile_begins_again(cache: Cache) -> None:
    cache.keep(NAME, 0, 5, b"hello")
    subprocess.run(["rm", "-r", str(cache.root)], check=True)
    assert cache.fetch(NAME, 0, 5) is None
    for _ in range(2):
        cache.keep(NAME, 0, 5, b"hello")
    assert cache.fetch(NAME, 0, 5) == b"hello"


def test_what_a_killed_process_left_is_removed(cache: Cache) -> None:
    (cache.root / "incoming" / "123-abc").write_bytes(b"half of an ent")
    Cache(cache.root, cache.max_bytes)
    assert not list((cache.root / "incoming").iterdir())


def test_an_entry_that_is_being_written_outlives_the_start_of_another_process(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def replace_late(self: Path, target: Path) -> Path:
        Cache(cache.root, cache.max_bytes)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    cache.keep(NAME, 0, 5, b"hello")
    assert cache.fetch(NAME, 0, 5) == b"hello"


def test_nobody_waits_for_a_process_that_was_stopped_with_the_lock(cache: Cache) -> None:
    code = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.flock(f,fcntl.LOCK_EX); print(flush=True); input()"
    cache.keep(NAME, 0, 1000, bytes(1000))
    command = [sys.executable, "-c", code, str(cache.root / "usage")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        cache.keep(NAME, 1000, 2000, bytes(1000))
        assert cache.fetch(NAME, 1000, 2000) == bytes(1000)
        holder.kill()
    cache.keep(NAME, 2000, 3000, bytes(1000))
    assert cache.stats().bytes == 3 * 1016  # what could not be counted then is counted now


def test_many_processes_share_one_budget_whose_count_heals(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache = Cache(tmp_path, MIB)
    assert not list((tmp_path / "incoming").iterdir())
    for begin in range(5_000_000, 5_000_000 + 2 * MIB, 10_000):  # what they did not count is counted when room is made
        cache.keep(NAME, begin, begin + 10_000, bytes(10_000))
    assert sum(path.stat().st_size for path in entries(cache)) == cache.stats().bytes <= MIB
