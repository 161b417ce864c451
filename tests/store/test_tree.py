"""A store can be walked like a file system, and what is read in it is verified."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.outside.blocks import BLOCK_BYTES, BlockCache, BytesFile, File, ObjectFile
from bushcraft.store.outside.folder import put_folder
from bushcraft.store.outside.folder_get import get_object
from bushcraft.store.outside.folder_manifest import find_folder
from bushcraft.store.outside.tree import Directory, Fixed, Node, Remembered, find, references, tree
from bushcraft.store.settings import DepotSettings, StoreSettings

LARGE = bytes(range(256)) * (2 * BLOCK_BYTES // 256) + b"end"


def walk(top: Directory, path: str = "") -> Iterator[tuple[str, Node]]:
    for name in top.names():
        node = top.child(name)
        assert node is not None
        yield f"{path}/{name}", node
        if isinstance(node, Directory):
            yield from walk(node, f"{path}/{name}")


def file_at(top: Directory, path: str) -> File:
    node = find(top, path)
    assert isinstance(node, File)
    return node


@pytest.fixture
def published(depot: LocalDepot, tmp_path: Path) -> LocalDepot:
    folder = tmp_path / "folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "large.bin").write_bytes(LARGE)
    (folder / "sub" / "run").write_text("x")
    (folder / "sub" / "run").chmod(0o755)
    put_folder(depot, "team/f", folder)
    return depot


def test_everything_has_its_place(published: LocalDepot) -> None:
    found = dict(walk(tree(published)))
    of_folder = {path: node for path, node in found.items() if path.startswith("/folders/")}
    assert sorted(of_folder) == [
        "/folders/team",
        "/folders/team/f",
        "/folders/team/f/large.bin",
        "/folders/team/f/sub",
        "/folders/team/f/sub/empty",
        "/folders/team/f/sub/run",
    ]
    assert {path.removeprefix("/objects/") for path in found if path.startswith("/objects/")} == {
        name for name, _ in published.objects()
    }
    reference = found["/refs/folders/team/f/00000001"]
    assert isinstance(reference, File)
    assert reference.read(0, 100).decode().strip() == published.latest("folders/team/f")
    run = found["/folders/team/f/sub/run"]
    assert isinstance(run, File)
    assert run.executable


@pytest.mark.parametrize("path", ["x", "folders/x", "folders/team/f/large.bin/x", "objects/" + "0" * 64, "objects/x"])
def test_what_is_not_there_is_none(published: LocalDepot, path: str) -> None:
    assert find(tree(published), path) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(begin=st.integers(0, len(LARGE) + 9), length=st.integers(0, len(LARGE)), cached=st.booleans())
def test_any_range_is_that_of_the_file(published: LocalDepot, begin: int, length: int, cached: bool) -> None:
    cache = BlockCache(BLOCK_BYTES) if cached else None
    for file in (file_at(tree(published), "folders/team/f/large.bin"), BytesFile(LARGE)):
        assert file.read(begin, begin + length, cache) == LARGE[begin : begin + length]


def test_damage_is_told_by_the_block_that_has_it_and_by_no_other(published: LocalDepot) -> None:
    file = file_at(tree(published), "folders/team/f/large.bin")
    published.path(file.identity).write_bytes(LARGE[:BLOCK_BYTES] + b"?" + LARGE[BLOCK_BYTES + 1 :])
    assert file.read(0, BLOCK_BYTES) == LARGE[:BLOCK_BYTES]
    assert file.read(2 * BLOCK_BYTES, len(LARGE)) == b"end"
    with pytest.raises(CorruptObjectError, match=file.identity):
        file.read(BLOCK_BYTES - 1, BLOCK_BYTES + 1)


@pytest.mark.parametrize("at", [0, BLOCK_BYTES, len(LARGE) - 1])
def test_object_without_checksums_is_verified_before_its_first_byte_is_given(depot: LocalDepot, at: int) -> None:
    name = depot.put_bytes(LARGE)
    assert file_at(tree(depot), f"objects/{name}").read(5, 9) == LARGE[5:9]
    depot.path(name).write_bytes(LARGE[:at] + bytes([LARGE[at] ^ 1]) + LARGE[at + 1 :])
    with pytest.raises(CorruptObjectError):
        ObjectFile(depot, name, len(LARGE)).read(5, 9)


def test_damage_after_an_object_was_verified_is_noticed_too(depot: LocalDepot) -> None:
    file = ObjectFile(depot, depot.put_bytes(LARGE), len(LARGE))
    assert file.read(0, 4) == LARGE[:4]
    depot.path(file.identity).write_bytes(b"?" + LARGE[1:])
    with pytest.raises(CorruptObjectError):
        file.read(0, 4)


@pytest.mark.parametrize("place", ["objects", "folders"])
def test_damage_in_one_depot_is_read_from_another(tmp_path: Path, place: str) -> None:
    members = [LocalDepot.create(tmp_path / name, name) for name in "ab"]
    known = tuple(DepotSettings(name=name, url=str(tmp_path / name), provider=name) for name in "ab")
    depots = Depots(members, StoreSettings(copies=2, off_provider=1, depots=known), tmp_path)
    (tmp_path / "large.bin").write_bytes(LARGE)
    put_folder(depots, "f", tmp_path / "large.bin")
    _, manifest = find_folder(depots, "f")
    name = manifest.files[0].object
    members[0].path(name).write_bytes(LARGE[:-1] + b"?")
    path = f"objects/{name}" if place == "objects" else "folders/f/large.bin"
    assert file_at(tree(depots), path).read(0, len(LARGE)) == LARGE
    get_object(depots, name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == LARGE


class CountedFile(BytesFile):
    """It counts how often its block is read."""

    n_reads = 0

    def block(self, index: int) -> bytes:
        self.n_reads += 1
        return super().block(index)


def test_cache_reads_a_block_once_and_forgets_the_oldest() -> None:
    files = [CountedFile(bytes([i]) * 100) for i in range(3)]
    cache = BlockCache(250)
    for file in (*files[:2], files[0], files[2], files[0]):
        assert file.read(10, 20, cache) == bytes([files.index(file)]) * 10
    assert [file.n_reads for file in files] == [1, 1, 1]
    files[1].read(0, 1, cache)
    assert files[1].n_reads == 2


def test_a_block_that_failed_is_tried_again(depot: LocalDepot) -> None:
    name = depot.put_bytes(b"precious")
    depot.path(name).write_bytes(b"rubbish!")
    file, cache = ObjectFile(depot, name, 8), BlockCache(100)
    with pytest.raises(CorruptObjectError):
        file.read(0, 8, cache)
    depot.path(name).write_bytes(b"precious")
    assert file.read(0, 8, cache) == b"precious"


def test_newest_folder_is_seen_when_the_old_answer_is_no_longer_fresh() -> None:
    now, values = [0.0], iter(range(9))
    remembered = Remembered(lambda key: (key, next(values)), 5.0, lambda: now[0])
    assert [remembered("a"), remembered("a"), remembered("b")] == [("a", 0), ("a", 0), ("b", 1)]
    now[0] = 5.0
    assert remembered("a") == ("a", 2)


def test_reference_above_another_shows_both(depot: LocalDepot) -> None:
    for ref in ("top/a", "top/a/b", "top/c/d"):
        depot.publish(ref, depot.put_bytes(ref.encode()))
    top = references(depot, "top", lambda ref: Fixed({"is": BytesFile(ref.encode())}))
    assert [path for path, _ in walk(top)] == ["/a", "/a/b", "/a/b/is", "/a/is", "/c", "/c/d", "/c/d/is"]
    assert file_at(top, "a/b/is").read(0, 99) == b"top/a/b"
