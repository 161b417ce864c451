"""A mounted store is read by the programs that read files, and damage in it is an error, never wrong bytes."""

import contextlib
import errno
import os
import queue
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from bushcraft.errors import StoreError, UnreachableError
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside import mount as mount_module
from bushcraft.store.outside.blocks import BLOCK_BYTES, BytesFile, File
from bushcraft.store.outside.folder import put_folder
from bushcraft.store.outside.folder_manifest import find_folder
from bushcraft.store.outside.mount import TreeOperations, check_mount_point
from bushcraft.store.outside.tree import Directory, Fixed, Listing, Node, tree
from bushcraft.store.workspace import Store
from tests.store.mounted import Mounted, needs_fuse

LARGE = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"end"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "large.bin").write_bytes(LARGE)
    (root / "sub" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "sub" / "run.sh").chmod(0o755)
    return root


@pytest.fixture
def mounted(depot: LocalDepot, store: Store, folder: Path, tmp_path: Path) -> Iterator[Mounted]:
    put_folder(depot, "f", folder)
    mounted = Mounted(store.root, tmp_path / "mnt")
    yield mounted
    if mounted.process.poll() is None:
        mounted.end(signal.SIGTERM)


def shell(command: str, where: Path) -> str:
    return subprocess.run(["bash", "-ec", command], cwd=where, capture_output=True, text=True, check=True).stdout


@needs_fuse
def test_programs_read_a_mounted_store(mounted: Mounted, folder: Path, tmp_path: Path) -> None:
    listed = shell("ls -lR", mounted.where)
    assert "large.bin" in listed
    assert f" {len(LARGE)} " in listed
    sums = "find . -type f -exec sha256sum {} + | sort"
    assert shell(sums, mounted.where / "folders" / "f") == shell(sums, folder)
    shell(f"cp -r folders/f {tmp_path}/copy && diff -r {tmp_path}/copy {folder}", mounted.where)
    assert shell("folders/f/sub/run.sh", mounted.where) == "ran\n"
    assert shell("tail -c 3 folders/f/large.bin", mounted.where) == "end"


@needs_fuse
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_signal_unmounts_also_while_a_file_is_open(mounted: Mounted, by: signal.Signals) -> None:
    descriptor = os.open(mounted.where / "folders" / "f" / "large.bin", os.O_RDONLY)
    assert os.read(descriptor, 4) == LARGE[:4]
    assert mounted.end(by) == ""
    with contextlib.suppress(OSError):  # what was open is not there any more
        os.close(descriptor)
    assert mounted.process.returncode == 0
    assert not os.path.ismount(mounted.where)


@needs_fuse
def test_nothing_can_be_written(mounted: Mounted) -> None:
    for write in (lambda: (mounted.where / "x").touch(), lambda: (mounted.where / "folders/f/large.bin").unlink()):
        with pytest.raises(OSError, match="Read-only file system"):
            write()


@needs_fuse
def test_damage_is_an_error_of_just_that_read_and_one_line(mounted: Mounted, depot: LocalDepot) -> None:
    _, manifest = find_folder(depot, "f")
    large = next(file.object for file in manifest.files if file.path == "large.bin")
    at = 2 * BLOCK_BYTES + 5
    depot.path(large).write_bytes(LARGE[:at] + bytes([LARGE[at] ^ 1]) + LARGE[at + 1 :])
    with (mounted.where / "folders" / "f" / "large.bin").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, 7) == LARGE[7:107]
        for _ in range(2):
            with pytest.raises(OSError) as refused:
                os.pread(file.fileno(), 100, at)
            assert refused.value.errno == errno.EIO
        assert os.pread(file.fileno(), 100, 3 * BLOCK_BYTES) == b"end"
    log = mounted.end(signal.SIGTERM)
    assert log.count("\n") == 1
    assert log.startswith("/folders/f/large.bin: ")
    assert large in log


@pytest.mark.slow
@needs_fuse
def test_new_values_of_a_name_are_seen(mounted: Mounted, depot: LocalDepot, folder: Path) -> None:
    """Also where the size is the same, so that the kernel could think that its pages still hold."""
    path = mounted.where / "folders" / "f" / "large.bin"
    assert path.read_bytes() == LARGE
    (folder / "large.bin").write_bytes(LARGE[::-1])
    put_folder(depot, "f", folder)
    poll = select.poll()
    for _ in range(200):
        if path.read_bytes() == LARGE[::-1]:
            return
        poll.poll(100)
    pytest.fail("20 s later the old bytes are still there")


def operations(top: Directory, log: list[str], deadline: float = 5.0) -> TreeOperations:
    return TreeOperations(top, log.append, deadline, clock=lambda: 0.0)


class StuckFile(BytesFile):
    """Its depot does not answer before the test has ended."""

    def __init__(self, end: threading.Event) -> None:
        super().__init__(b"never")
        self.end = end

    def block(self, index: int) -> bytes:
        self.end.wait()
        return super().block(index)


def test_depot_that_does_not_answer_is_an_error_in_time() -> None:
    end, log = threading.Event(), list[str]()
    served = operations(Fixed({"stuck": StuckFile(end), "good": BytesFile(b"good")}), log, deadline=0.05)
    handle = served.open("/stuck", os.O_RDONLY)
    with pytest.raises(OSError) as refused:
        served.read("/stuck", 5, 0, handle)
    assert refused.value.errno == errno.EIO
    assert log == ["/stuck: no answer in 0 s"]
    assert served.read("/good", 9, 0, served.open("/good", os.O_RDONLY)) == b"good"
    end.set()


def test_unreachable_depot_is_an_error_and_a_line_for_each_path() -> None:
    def unreachable(_: str) -> Node | None:
        raise UnreachableError("bucket b does not answer", "Try later")

    log: list[str] = []
    served = operations(Fixed({"far": Listing(list, unreachable)}), log)
    for path in ("/far/a", "/far/a", "/far/b"):
        with pytest.raises(OSError) as refused:
            served.getattr(path)
        assert refused.value.errno == errno.EIO
    assert log == [f"{path}: bucket b does not answer. Try later" for path in ("/far/a", "/far/b")]


@pytest.mark.parametrize(
    ("path", "number"), [("/none", errno.ENOENT), ("/file/x", errno.ENOENT), ("/directory", errno.EISDIR)]
)
def test_what_cannot_be_opened_is_told_as_by_any_file_system(path: str, number: int) -> None:
    served = operations(Fixed({"file": BytesFile(b""), "directory": Fixed({})}), [])
    with pytest.raises(OSError) as refused:
        served.open(path, os.O_RDONLY)
    assert refused.value.errno == number


def test_open_file_stays_what_it_was() -> None:
    files: dict[str, File] = {"f": BytesFile(b"old")}
    served = operations(Listing(lambda: files, files.get), [])
    handle = served.open("/f", os.O_RDONLY)
    files["f"] = BytesFile(b"newer")
    assert served.read("/f", 9, 0, handle) == b"old"
    assert served.getattr("/f", handle)["st_size"] == 3


class WatchedFile(BytesFile):
    """Blocks of one byte; it notes which are read."""

    def __init__(self) -> None:
        super().__init__(bytes(range(9)))
        self.begins = range(9)  # type: ignore[assignment]
        self.asked: queue.Queue[int] = queue.Queue()

    def block(self, index: int) -> bytes:
        self.asked.put(index)
        return bytes([index])


def test_who_reads_on_finds_the_next_blocks_at_hand() -> None:
    file = WatchedFile()
    served = operations(Fixed({"f": file}), [])
    handle = served.open("/f", os.O_RDONLY)
    for at in (3, 7):  # here and there: nothing is read ahead
        assert served.read("/f", 1, at, handle) == bytes([at])
    assert [file.asked.get(), file.asked.get(), file.asked.empty()] == [3, 7, True]
    assert served.read("/f", 1, 4, handle) == b"\4"
    assert {file.asked.get(timeout=5) for _ in range(3)} == {4, 5, 6}


def test_other_bytes_have_another_time(depot: LocalDepot) -> None:
    names = [depot.put_bytes(bytes([i])) for i in range(2)]
    served = operations(tree(depot), [])
    assert names[0] == blake3(b"\0").hexdigest()
    assert len({served.getattr(f"/objects/{name}")["st_mtime"] for name in names}) == 2


def test_full_directory_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"not empty|no access"):
        check_mount_point(tmp_path)


@needs_fuse
def test_what_is_mounted_already_is_no_mount_point(mounted: Mounted) -> None:
    with pytest.raises(StoreError, match="something is mounted"):
        check_mount_point(mounted.where)


def test_machine_without_fuse_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_module, "DEVICE", tmp_path / "no-fuse")
    with pytest.raises(StoreError, match="does not let us mount"):
        check_mount_point(tmp_path / "mnt")


@needs_fuse
@pytest.mark.parametrize(("error", "step"), [(ImportError, "pip install"), (OSError, "apt-get install fuse3")])
def test_missing_library_is_told_with_how_to_install_it(
    error: type[Exception], step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(StoreError, match=step):
        check_mount_point(tmp_path / "mnt")
