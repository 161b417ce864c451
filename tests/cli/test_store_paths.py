"""A store that cannot be: every command tells it in one line and ends with exit code 2."""

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bushcraft.cli import main
from bushcraft.store.workspace import Store

TEXT = Path(__file__).parents[2] / "README.md"
COMMANDS = (
    ["train", "smoke"],
    ["data", "build", "d", str(TEXT), "--workers", "1"],
    ["data", "inspect"],
    ["data", "verify"],
    ["run", "list"],
    ["run", "show", "x"],
    ["checkpoint", "list"],
    ["checkpoint", "verify"],
    ["generate", "x"],
)


def below_proc(_: Path) -> str:
    return "/proc/x"


def empty(_: Path) -> str:
    return ""


def a_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file")


def below_a_file(folder: Path) -> str:
    return a_file(folder) + "/store"


def too_long(folder: Path) -> str:
    return str(folder / ("x" * 300))


def a_loop(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop")


def with_a_file_as_depot(folder: Path) -> str:
    a_file(folder)
    (folder / "file").rename(folder / "depot")
    return str(folder)


def with_a_directory_as_marker(folder: Path) -> str:
    (folder / "depot" / "depot.json").mkdir(parents=True)
    return str(folder)


def run(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code of a command, and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["bushcraft", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


CAPABILITY_VERSION = 0x20080522
DAC_OVERRIDE_AND_READ_SEARCH = 0b110
"""The bits of capabilities(7) by which every file is open to root."""


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Without the right of root to read and write what the mode of a file forbids its owner."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    before, now = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    for sets in (before, now):
        assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    now[0] &= ~DAC_OVERRIDE_AND_READ_SEARCH
    assert libc.capset(header, now) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "place",
    [below_proc, empty, a_file, below_a_file, too_long, a_loop, with_a_file_as_depot, with_a_directory_as_marker],
)
def test_impossible_store_is_told_in_one_line(
    place: Callable[[Path], str],
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, told = run([*command, "--store", place(tmp_path)], monkeypatch, capsys)
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
def test_store_without_permission_is_told_in_one_line(
    mode: int,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    try:
        with bound_by_permissions():
            code, told = run([*command, "--store", str(closed / "store")], monkeypatch, capsys)
    finally:
        closed.chmod(0o700)
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "closed"),
    [(["run", "list"], "runs"), (["checkpoint", "list"], "depot/refs"), (["data", "inspect"], "depot/refs")],
)
def test_what_may_not_be_listed_is_not_said_to_be_empty(
    command: list[str], closed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed itself
        root = Path(folder)
        Store.create(root / "store").depot.publish("checkpoints/x", "0" * 64)
        root.chmod(0o755)
        (root / "store" / closed).chmod(0)
        with bound_by_permissions():
            code, told = run([*command, "--store", str(root / "store")], monkeypatch, capsys)
        (root / "store" / closed).chmod(0o700)
    assert code == 2
    assert "Permission denied" in told


def test_an_empty_store_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `--store "$UNSET"`."""
    monkeypatch.chdir(tmp_path)
    _, told = run(["data", "build", "d", str(TEXT), "--store", ""], monkeypatch, capsys)
    assert told == "error: --store is empty. Name a directory, or leave --store away\n"
    assert not list(tmp_path.iterdir())
