"""Bytes that are read to their place are verified as others are, whether a kind of depot has its own way or not."""

from collections.abc import Callable

import pytest

from bushcraft.errors import CorruptObjectError, MissingObjectError
from bushcraft.store.depot import Check, Depot
from bushcraft.store.local import LocalDepot

WAYS = pytest.mark.parametrize("read_into", [LocalDepot.read_into, Depot.read_into])
ReadInto = Callable[[LocalDepot, str, int, int, memoryview, Check], None]


@WAYS
def test_a_range_is_read_to_its_place_and_nowhere_else(depot: LocalDepot, read_into: ReadInto) -> None:
    name = depot.put_bytes(b"0123456789")
    memory = bytearray(b"xxxxxx")
    seen: list[bytes] = []
    read_into(depot, name, 3, 7, memoryview(memory)[1:5], lambda data: seen.append(bytes(data)) or True)
    assert memory == b"x3456x"
    assert seen == [b"3456"]


@WAYS
def test_a_range_that_is_not_good_is_refused(depot: LocalDepot, read_into: ReadInto) -> None:
    name = depot.put_bytes(b"0123456789")
    with pytest.raises(CorruptObjectError, match=f"{name}.*bytes 3-7 do not have their checksum"):
        read_into(depot, name, 3, 7, memoryview(bytearray(4)), lambda _: False)


@WAYS
def test_what_is_missing_or_short_is_told_as_by_other_reads(depot: LocalDepot, read_into: ReadInto) -> None:
    name = depot.put_bytes(b"0123456789")
    with pytest.raises(CorruptObjectError, match="ends at byte 10, before byte 12"):
        read_into(depot, name, 8, 12, memoryview(bytearray(4)), lambda _: True)
    depot.path(name).unlink()
    with pytest.raises(MissingObjectError, match=name):
        read_into(depot, name, 3, 7, memoryview(bytearray(4)), lambda _: True)


def test_a_kernel_that_gives_less_at_a_time_is_asked_again(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    from bushcraft.store import local

    real = local.os.preadv
    monkeypatch.setattr(local.os, "preadv", lambda file, buffers, at: real(file, [buffers[0][:3]], at))
    name = depot.put_bytes(b"0123456789")
    memory = bytearray(10)
    depot.read_into(name, 0, 10, memoryview(memory), lambda data: data == b"0123456789")
    assert memory == b"0123456789"
