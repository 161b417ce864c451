"""A depot keeps what it is given, under the hash of its content, and notices every change of it."""

import errno
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError, StoreError
from bushcraft.store.local import LocalDepot
from bushcraft.store.workspace import Store


def test_object_is_named_by_its_blake3_and_read_back(depot: LocalDepot) -> None:
    assert depot.put_bytes(b"hello") == blake3(b"hello").hexdigest()
    assert depot.read(blake3(b"hello").hexdigest()) == b"hello"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.binary(min_size=1, max_size=200), at=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(depot: LocalDepot, data: bytes, at: int, bit: int) -> None:
    name = depot.put_bytes(data)
    path = depot.path(name)
    damaged = bytearray(data)
    damaged[at % len(data)] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(CorruptObjectError, match=name):
        depot.read(name)
    with pytest.raises(CorruptObjectError, match=name):
        depot.verify(name)


def test_putting_again_repairs_a_damaged_copy(depot: LocalDepot) -> None:
    name = depot.put_bytes(b"precious")
    depot.path(name).write_bytes(b"rubbish!")
    assert depot.put_bytes(b"precious") == name
    assert depot.read(name) == b"precious"


def test_missing_object_is_named(depot: LocalDepot) -> None:
    with pytest.raises(StoreError, match="ab" * 32):
        depot.read("ab" * 32)


def test_short_object_is_corrupt_not_a_short_read(depot: LocalDepot) -> None:
    name = depot.put_bytes(b"x" * 100)
    depot.path(name).write_bytes(b"x" * 60)
    with pytest.raises(CorruptObjectError, match="ends at byte 60"):
        depot.read_range(name, 50, 100, lambda _: True)


def test_path_outside_the_depot_is_no_object_name(depot: LocalDepot) -> None:
    with pytest.raises(StoreError, match="not an object name"):
        depot.read("../../etc/passwd")


def test_references_are_numbered_and_the_newest_wins(depot: LocalDepot) -> None:
    names = [depot.put_bytes(bytes([i])) for i in range(3)]
    assert [depot.publish("checkpoints/a", name) for name in names] == [1, 2, 3]
    assert depot.latest("checkpoints/a") == names[2]
    assert list(depot.history("checkpoints/a")) == [(3, names[2]), (2, names[1]), (1, names[0])]
    assert depot.latest("checkpoints/b") is None
    assert depot.refs("checkpoints") == ["checkpoints/a"]


@pytest.mark.parametrize("ref", ["../x", "/x", "a//b", "", "a/../b", ".hidden"])
def test_reference_names_cannot_leave_the_depot(depot: LocalDepot, ref: str) -> None:
    with pytest.raises(StoreError, match="cannot be a name"):
        depot.publish(ref, depot.put_bytes(b"x"))


def test_nothing_is_visible_after_a_failed_write(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left.*Free some space"):
        depot.put_bytes(b"too much")
    monkeypatch.undo()
    assert not list((depot.root / "incoming").iterdir())
    assert not depot.has(blake3(b"too much").hexdigest())


def test_object_is_durable_before_its_name_is(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), replace(self, to))[1])
    depot.put_bytes(b"new content")
    assert calls[0] == "fsync"
    assert calls[-2:] == ["rename", "fsync"]


def test_a_copied_depot_is_a_depot(depot: LocalDepot, tmp_path: Path) -> None:
    import shutil

    name = depot.put_bytes(b"x")
    depot.publish("a", name)
    shutil.copytree(depot.root, tmp_path / "copy")
    copy = LocalDepot.open(tmp_path / "copy")
    assert (copy.latest("a"), copy.read(name)) == (name, b"x")


def test_later_format_is_refused(depot: LocalDepot) -> None:
    (depot.root / "depot.json").write_text('{"format": "bushcraft-depot", "version": 2}')
    with pytest.raises(StoreError, match="newer bushcraft"):
        LocalDepot.open(depot.root)


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path)


def test_store_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        Store.create(tmp_path / "file" / "store")
