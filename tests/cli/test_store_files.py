"""`bushcraft store put|get|ls|mount`: what they say, and that bad input is one line."""

import json
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bushcraft.cli.store_files import register
from bushcraft.errors import StoreError
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.folder_manifest import find_folder
from bushcraft.store.workspace import Store
from tests.store.mounted import needs_fuse

APP = typer.Typer(pretty_exceptions_enable=False)
register(APP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my-folder"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a").write_text("text")
    (root / "b").write_bytes(b"x" * 12345)
    return root


def run(store: Store, *words: object) -> Result:
    return CliRunner().invoke(APP, [*map(str, words), "--store", str(store.root)])


def refused(store: Store, *words: object) -> str:
    """The one line that the user reads."""
    error = run(store, *words).exception
    assert isinstance(error, StoreError)
    assert "\n" not in str(error)
    return str(error)


def test_put_get_and_ls_go_round(store: Store, folder: Path, tmp_path: Path) -> None:
    assert "my-folder: 2 files, 12,349 bytes" in run(store, "put", folder).stdout
    assert "every byte verified" in run(store, "get", "my-folder", tmp_path / "back").stdout
    assert (tmp_path / "back" / "sub" / "a").read_text() == "text"
    listed = run(store, "ls", "folders/my-folder").stdout.splitlines()
    assert [line.split() for line in listed] == [["12,345", "b"], ["sub/"]]


def test_json_says_the_same(store: Store, depot: LocalDepot, folder: Path, tmp_path: Path) -> None:
    put = json.loads(run(store, "put", folder, "team/n", "--json").stdout)
    assert put == {"name": "team/n", "manifest": depot.latest("folders/team/n"), "files": 2, "bytes": 12349}
    got = json.loads(run(store, "get", put["manifest"], tmp_path / "back", "--json").stdout)
    assert got == {"manifest": put["manifest"], "target": str(tmp_path / "back")}
    assert json.loads(run(store, "ls", "folders/team/n/", "--json").stdout) == [
        {"name": "b", "type": "file", "size": 12345},
        {"name": "sub", "type": "directory"},
    ]


def test_object_is_got_as_a_file(store: Store, depot: LocalDepot, tmp_path: Path) -> None:
    name = depot.put_bytes(b"an object")
    assert run(store, "get", name, tmp_path / "back").exit_code == 0
    assert (tmp_path / "back").read_bytes() == b"an object"
    assert run(store, "ls", f"objects/{name}").stdout.split() == ["9", name]


def test_what_cannot_be_is_told_in_one_line(store: Store, folder: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(store, "put", tmp_path / "none")
    assert "cannot be a name" in refused(store, "put", folder, "../x")
    assert "there is no folder 'none'" in refused(store, "get", "none", tmp_path / "back")
    assert "is missing" in refused(store, "get", "0" * 64, tmp_path / "back")
    assert "there is no 'none/x' in the store" in refused(store, "ls", "none/x")
    assert "not empty" in (told := refused(store, "mount", folder)) or "no access" in told


def test_damage_is_listed_and_ends_with_exit_code_1(store: Store, depot: LocalDepot, folder: Path) -> None:
    run(store, "put", folder, "f")
    manifest, _ = find_folder(depot, "f")
    depot.path(manifest).write_bytes(b"rubbish")
    error = run(store, "ls", "folders/f").exception
    assert isinstance(error, StoreError)
    checkpoint = depot.put_bytes(b"no manifest")
    depot.publish("checkpoints/r", checkpoint)
    listed = run(store, "ls", "checkpoints/r")
    assert listed.exit_code == 1
    assert f"object {checkpoint} is not a checkpoint" in listed.stdout


@needs_fuse
def test_mount_serves_in_the_background_until_it_is_unmounted(store: Store, folder: Path, tmp_path: Path) -> None:
    run(store, "put", folder, "f")
    where = tmp_path / "mnt"
    assert f"fusermount3 -u {where}" in run(store, "mount", where).stdout
    try:
        assert (where / "folders" / "f" / "sub" / "a").read_text() == "text"
    finally:
        subprocess.run(["fusermount3", "-u", where], check=True)
    assert not where.is_mount()
    assert (store.root / "mount.log").read_text() == ""
