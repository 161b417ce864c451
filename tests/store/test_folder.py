"""A published folder comes back as it was, whole or not at all, and never outside of where it was wanted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.blocks import BLOCK_BYTES
from bushcraft.store.outside.folder import put_folder
from bushcraft.store.outside.folder_get import get_folder, get_object
from bushcraft.store.outside.folder_manifest import find_folder, is_folder

LARGE = bytes(range(256)) * (2 * BLOCK_BYTES // 256) + b"end"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all sizes, one that can be executed, an empty directory."""
    root = tmp_path / "folder"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "nothing" / "here").mkdir(parents=True)
    (root / "large.bin").write_bytes(LARGE)
    (root / "empty").write_bytes(b"")
    (root / "sub" / "deep" / "naïve name\n.txt").write_text("text")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


def contents(root: Path) -> dict[str, tuple[bytes | None, bool]]:
    """Of each path below `root`: its bytes (None: a directory), and whether a file can be executed."""
    return {
        path.relative_to(root).as_posix(): (None, False)
        if path.is_dir()
        else (path.read_bytes(), os.access(path, os.X_OK) and bool(path.stat().st_mode & 0o111))
        for path in root.rglob("*")
    }


def test_folder_comes_back_as_it_was(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    name = put_folder(depot, "f", folder)
    assert get_folder(depot, "f", tmp_path / "back") == name
    assert contents(tmp_path / "back") == contents(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "folder", "back"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    files=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
            lambda name: name not in (".", "..")
        ),
        st.binary(max_size=100),
        max_size=5,
    )
)
def test_any_names_and_bytes_come_back(
    depot: LocalDepot, tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    place = tmp_path_factory.mktemp("any")
    (place / "in").mkdir()
    for name, data in files.items():
        (place / "in" / name).write_bytes(data)
    get_folder(depot, put_folder(depot, "any", place / "in"), place / "out")
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == files


def test_same_files_are_the_same_folder(depot: LocalDepot, folder: Path) -> None:
    assert put_folder(depot, "f", folder) == put_folder(depot, "g", folder)


def test_unchanged_files_are_not_written_again(
    depot: LocalDepot, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(depot, "f", folder)
    (folder / "large.bin").chmod(0o755)
    (folder / "run.sh").write_text("#!/bin/ls\n")  # as long as before
    written: list[int] = []
    put_file = LocalDepot.put_file
    monkeypatch.setattr(LocalDepot, "put_file", lambda self, new: (written.append(new.size), put_file(self, new))[1])
    put_folder(depot, "f", folder)
    assert written == [len("#!/bin/ls\n")]
    get_folder(depot, "f", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_putting_a_folder_again_repairs_its_objects(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    _, manifest = find_folder(depot, put_folder(depot, "f", folder))
    depot.path(next(file.object for file in manifest.files if file.path == "large.bin")).write_bytes(LARGE[:-1] + b"?")
    put_folder(depot, "f", folder)
    get_folder(depot, "f", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_manifest_has_a_checksum_of_each_block(depot: LocalDepot, folder: Path) -> None:
    document = json.loads(depot.read(put_folder(depot, "f", folder)))
    assert (document["format"], document["version"]) == ("bushcraft-folder", 1)
    assert {file["path"]: len(file["chunks"]) for file in document["files"]}["large.bin"] == 3
    assert document["directories"] == ["nothing/here"]


def test_single_file_is_a_folder_that_holds_it(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    put_folder(depot, "one", folder / "run.sh")
    get_folder(depot, "one", tmp_path / "back")
    assert contents(tmp_path / "back") == {"run.sh": (b"#!/bin/sh\n", True)}


def a_link(folder: Path) -> None:
    (folder / "odd").symlink_to("run.sh")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "odd")


@pytest.mark.parametrize(("make", "why"), [(a_link, "is a symbolic link"), (a_pipe, "is no plain file")])
def test_what_is_no_plain_file_is_refused(
    depot: LocalDepot, folder: Path, make: Callable[[Path], None], why: str
) -> None:
    make(folder)
    with pytest.raises(StoreError, match=f"odd {why}"):
        put_folder(depot, "f", folder)
    assert depot.refs("folders") == []


def test_link_to_a_file_is_that_file_where_links_are_followed(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    a_link(folder)
    put_folder(depot, "f", folder, follow_links=True)
    get_folder(depot, "f", tmp_path / "back")
    assert not (tmp_path / "back" / "odd").is_symlink()
    assert (tmp_path / "back" / "odd").read_text() == "#!/bin/sh\n"


def longer(folder: Path) -> None:
    (folder / "large.bin").open("ab").write(b"more")


def rewritten(folder: Path) -> None:
    (folder / "empty").write_bytes(b"")


def another(folder: Path) -> None:
    (folder / "new").write_bytes(b"")


def gone(folder: Path) -> None:
    (folder / "nothing" / "here").rmdir()


@pytest.mark.parametrize("change", [longer, rewritten, another, gone])
def test_change_while_it_is_read_publishes_nothing(
    depot: LocalDepot, folder: Path, change: Callable[[Path], None]
) -> None:
    pending = [change]

    def progress(done: int, total: int) -> None:  # noqa: ARG001
        while pending:
            pending.pop()(folder)

    with pytest.raises(StoreError, match="changed while it was read"):
        put_folder(depot, "f", folder, progress)
    assert depot.refs("folders") == []


def test_get_replaces_nothing(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    put_folder(depot, "f", folder)
    (tmp_path / "taken").write_text("mine")
    for target in (folder, tmp_path / "taken"):
        with pytest.raises(StoreError, match="is there already"):
            get_folder(depot, "f", target)
    assert (tmp_path / "taken").read_text() == "mine"


def test_damaged_block_gives_no_folder_and_the_next_get_fetches_only_what_is_missing(
    depot: LocalDepot, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest = find_folder(depot, put_folder(depot, "f", folder))
    path = depot.path(next(file.object for file in manifest.files if file.path == "large.bin"))
    path.write_bytes(LARGE[:-1] + b"?")
    with pytest.raises(CorruptObjectError, match="do not have their checksum"):
        get_folder(depot, "f", tmp_path / "back")
    assert not (tmp_path / "back").exists()

    path.write_bytes(LARGE)
    fetched: list[int] = []
    fetch = LocalDepot.fetch
    monkeypatch.setattr(LocalDepot, "fetch", lambda *a: (fetched.append(a[3] - a[2]), fetch(*a))[1])
    get_folder(depot, "f", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert BLOCK_BYTES not in fetched


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "a/", "a\0b"])
@pytest.mark.parametrize("kind", ["files", "directories"])
def test_manifest_that_leads_out_of_the_folder_is_refused(
    depot: LocalDepot, tmp_path: Path, path: str, kind: str
) -> None:
    file = {"path": path, "size": 1, "object": depot.put_bytes(b"x"), "mode": 0o644, "chunks": ["0" * 32]}
    name = put_document(depot, files=[file] if kind == "files" else [], directories=[path])
    with pytest.raises(StoreError, match="is not a path inside"):
        get_folder(depot, name, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a")])
def test_manifest_with_a_path_that_is_two_things_is_refused(depot: LocalDepot, paths: tuple[str, str]) -> None:
    files = [{"path": p, "size": 0, "object": depot.put_bytes(b""), "mode": 0o644, "chunks": []} for p in paths]
    with pytest.raises(StoreError, match="stands in it twice"):
        find_folder(depot, put_document(depot, files=files))


def test_manifest_without_a_checksum_for_each_block_is_refused(depot: LocalDepot) -> None:
    file = {"path": "a", "size": 1, "object": depot.put_bytes(b"x"), "mode": 0o644, "chunks": []}
    with pytest.raises(StoreError, match="0 checksums for 1 bytes"):
        find_folder(depot, put_document(depot, files=[file]))


def put_document(depot: LocalDepot, **parts: object) -> str:
    document = {"format": "bushcraft-folder", "version": 1, **parts}
    return depot.put_bytes(json.dumps(document, separators=(",", ":")).encode())


def test_link_in_what_an_earlier_get_left_is_not_followed(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    name = put_folder(depot, "f", folder)
    partial = tmp_path / f".back.{name[:16]}.partial"
    partial.mkdir()
    (tmp_path / "precious").write_text("precious")
    (partial / "run.sh").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"run\.sh"):
        get_folder(depot, "f", tmp_path / "back")
    assert (tmp_path / "precious").read_text() == "precious"


def test_unknown_folder_is_told_with_the_known_ones(depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    put_folder(depot, "f", folder)
    with pytest.raises(StoreError, match=r"there is no folder 'g' .*known: f"):
        get_folder(depot, "g", tmp_path / "back")


def test_object_comes_back_verified(depot: LocalDepot, tmp_path: Path) -> None:
    name = depot.put_bytes(LARGE)
    assert not is_folder(depot, name)
    get_object(depot, name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == LARGE
    depot.path(name).write_bytes(LARGE[:-1] + b"?")
    with pytest.raises(CorruptObjectError):
        get_object(depot, name, tmp_path / "again")
    assert not list(tmp_path.glob("*again*"))
