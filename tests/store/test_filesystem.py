"""What reads through fsspec reads a store, verified, and writes nothing into it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.blocks import BLOCK_BYTES
from bushcraft.store.outside.filesystem import BushcraftFileSystem
from bushcraft.store.outside.folder import put_folder
from bushcraft.store.outside.folder_manifest import find_folder
from bushcraft.store.workspace import Store

LARGE = bytes(range(256)) * (2 * BLOCK_BYTES // 256) + b"end"


@pytest.fixture
def options(depot: LocalDepot, store: Store, tmp_path: Path) -> dict[str, str]:
    """Storage options for a store with the folder `f`."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "large.bin").write_bytes(LARGE)
    (folder / "sub" / "a.json").write_text(json.dumps({"a": 1}))
    put_folder(depot, "f", folder)
    return {"store": str(store.root)}


def test_protocol_is_known_to_fsspec(options: dict[str, str]) -> None:
    with fsspec.open("bushcraft://folders/f/sub/a.json", "rt", **options) as file:
        assert json.load(file) == {"a": 1}


def test_store_is_that_of_the_environment_at_that_time(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSHCRAFT_STORE", options["store"])
    assert fsspec.filesystem("bushcraft").exists("folders/f")
    monkeypatch.setenv("BUSHCRAFT_STORE", str(Store.create(tmp_path / "other").root))
    assert not fsspec.filesystem("bushcraft").exists("folders/f")


def test_tree_is_listed_and_walked(options: dict[str, str]) -> None:
    files = fsspec.filesystem("bushcraft", **options)
    assert files.ls("bushcraft://folders/f", detail=False) == ["folders/f/large.bin", "folders/f/sub"]
    assert files.find("folders") == ["folders/f/large.bin", "folders/f/sub/a.json"]
    assert files.glob("folders/*/sub/*.json") == ["folders/f/sub/a.json"]
    assert files.info("folders/f/large.bin")["size"] == len(LARGE)
    assert files.isdir("folders/f")
    assert files.isfile("folders/f/large.bin")
    assert {"checkpoints", "datasets", "folders", "objects", "refs"} == set(files.ls("", detail=False))
    assert not files.exists("folders/g")
    assert files.ukey("folders/f/large.bin") == files.info("folders/f/large.bin")["identity"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    begin=st.none() | st.integers(-len(LARGE) - 3, len(LARGE) + 3),
    end=st.none() | st.integers(-len(LARGE) - 3, len(LARGE) + 3),
)
def test_any_part_is_that_of_the_file(options: dict[str, str], begin: int | None, end: int | None) -> None:
    files = fsspec.filesystem("bushcraft", **options)
    assert files.cat_file("folders/f/large.bin", begin, end) == LARGE[begin:end]


def test_open_file_is_read_here_and_there(options: dict[str, str]) -> None:
    with fsspec.filesystem("bushcraft", **options).open("folders/f/large.bin") as file:
        assert file.read(4) == LARGE[:4]
        file.seek(-3, 2)
        assert file.read() == b"end"
        file.seek(BLOCK_BYTES - 2)
        assert file.read(4) == LARGE[BLOCK_BYTES - 2 : BLOCK_BYTES + 2]


def test_damage_is_an_error(options: dict[str, str], depot: LocalDepot) -> None:
    _, manifest = find_folder(depot, "f")
    name = next(file.object for file in manifest.files if file.path == "large.bin")
    depot.path(name).write_bytes(b"?" + LARGE[1:])
    files = fsspec.filesystem("bushcraft", skip_instance_cache=True, **options)
    assert files.cat_file("folders/f/large.bin", -3) == b"end"
    with pytest.raises(CorruptObjectError, match=name):
        files.cat_file("folders/f/large.bin", 0, 3)


WRITES: tuple[Callable[[BushcraftFileSystem], object], ...] = (
    lambda files: files.pipe_file("folders/f/new", b""),
    lambda files: files.open("folders/f/large.bin", "ab"),
    lambda files: files.mkdir("folders/g"),
    lambda files: files.makedirs("folders/g", exist_ok=True),
)


@pytest.mark.parametrize("write", WRITES)
def test_nothing_can_be_written(options: dict[str, str], write: Callable[[BushcraftFileSystem], object]) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        write(fsspec.filesystem("bushcraft", **options))


def test_what_is_not_there_is_told_as_by_any_file_system(options: dict[str, str]) -> None:
    files = fsspec.filesystem("bushcraft", **options)
    with pytest.raises(FileNotFoundError):
        files.info("folders/g")
    with pytest.raises(IsADirectoryError):
        files.open("folders/f")


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        fsspec.filesystem("bushcraft", store=str(tmp_path / "none")).ls("")


def test_workers_get_their_own(options: dict[str, str]) -> None:
    files = pickle.loads(pickle.dumps(fsspec.filesystem("bushcraft", **options)))
    assert files.cat_file("folders/f/large.bin", -3) == b"end"


def test_parquet_is_read_column_by_column(options: dict[str, str], depot: LocalDepot, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"a": list(range(1000)), "b": [f"row {i}" for i in range(1000)]})
    (tmp_path / "rows").mkdir()
    parquet.write_table(table, tmp_path / "rows" / "1.parquet", row_group_size=100)
    put_folder(depot, "rows", tmp_path / "rows")
    files = fsspec.filesystem("bushcraft", **options)
    assert parquet.read_table("folders/rows/1.parquet", filesystem=files).equals(table)
    assert parquet.read_table("folders/rows", columns=["b"], filesystem=files).equals(table.select(["b"]))
