"""What a killed writer leaves is removed by the next one, and what a living one writes never is."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import StoreError
from bushcraft.store import incoming as module
from bushcraft.store.incoming import IncomingFile
from bushcraft.store.local import LocalDepot

WRITER = """
import sys
from pathlib import Path
import numpy as np
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import PackWriter

writer = PackWriter(LocalDepot.open(Path(sys.argv[1])), 2)
writer.add(np.zeros(10**6, np.uint16), "half of a pack", 1)
print("written", flush=True)
for command in sys.stdin:
    print(writer.close().object, flush=True)
"""


@pytest.fixture
def writer(depot: LocalDepot) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a pack."""
    command = [sys.executable, "-c", WRITER, str(depot.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def incoming(depot: LocalDepot) -> list[Path]:
    return list((depot.root / "incoming").iterdir())


def test_file_of_a_killed_process_is_removed(depot: LocalDepot, writer: subprocess.Popen[str]) -> None:
    assert incoming(depot)
    writer.kill()
    writer.wait()
    assert incoming(depot)
    depot.remove_abandoned_files()
    assert not incoming(depot)


def test_file_of_a_living_process_stays_and_becomes_an_object(depot: LocalDepot, writer: subprocess.Popen[str]) -> None:
    before = incoming(depot)
    depot.remove_abandoned_files()
    assert incoming(depot) == before
    told, _ = writer.communicate("close\n")
    depot.verify(told.strip())
    assert not incoming(depot)


def test_writers_and_those_who_clean_up_do_not_meet(depot: LocalDepot) -> None:
    """A file is created before it is locked: what is removed in between is not written to."""
    done = threading.Event()

    def clean_up() -> None:
        while not done.is_set():
            depot.remove_abandoned_files()

    cleaners = [threading.Thread(target=clean_up) for _ in range(2)]
    for thread in cleaners:
        thread.start()
    try:
        for i in range(1000):
            with depot.new_file() as new:
                new.write(i.to_bytes(2, "little"))
                new.file.flush()
                assert new.path.read_bytes() == i.to_bytes(2, "little")
    finally:
        done.set()
        for thread in cleaners:
            thread.join()


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(
    depot: LocalDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = module.fcntl.flock, []

    def late(file: object, operation: int) -> None:
        if not removed:
            (path,) = incoming(depot)
            path.unlink()
            removed.append(path)
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(module.fcntl, "flock", late)
    with IncomingFile(depot.root / "incoming") as new:
        assert removed
        assert new.path.exists()


def test_what_cannot_be_a_file_of_ours_is_left_alone(depot: LocalDepot) -> None:
    (depot.root / "incoming" / "folder").mkdir()
    depot.remove_abandoned_files()
    assert incoming(depot)


def test_a_copy_without_the_empty_directory_has_nothing_to_remove(depot: LocalDepot) -> None:
    (depot.root / "incoming").rmdir()
    depot.remove_abandoned_files()
    assert depot.read(depot.put_bytes(b"x")) == b"x"


def test_where_nothing_can_be_locked_it_is_told_in_one_line(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_file: object, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    with pytest.raises(StoreError, match=r"No locks available\. .*--store"):
        depot.put_bytes(b"x")
    assert not incoming(depot)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_in_any_pieces_is_stored_and_hashed(
    depot: LocalDepot, pieces: list[bytes], block_bytes: int
) -> None:
    whole = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch, depot.new_file() as new:
        patch.setattr(module, "BLOCK_BYTES", block_bytes)
        for piece in pieces:
            new.write(memoryview(piece))
        assert new.size == len(whole)
        assert depot.put_file(new) == blake3(whole).hexdigest()
    assert depot.read(blake3(whole).hexdigest()) == whole


@pytest.mark.skipif(sys.platform != "linux", reason="others leave it to their kernel")
def test_the_disk_begins_before_all_is_written(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    real = module.os.posix_fadvise

    def advise(descriptor: int, begin: int, length: int, advice: int) -> None:
        assert os.fstat(descriptor).st_size >= begin + length  # the kernel has it
        sent.append((begin, length))
        real(descriptor, begin, length, advice)

    monkeypatch.setattr(module.os, "posix_fadvise", advise)
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    with depot.new_file() as new:
        for size in (30, 250, 60, 90):
            new.write(bytes(size))
    assert sent == [(0, 130), (130, 100), (230, 110)]
