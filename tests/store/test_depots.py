"""A set of depots is a depot: enough copies before a reference, late ones catch up, bad copies cost time only."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.depot import object_name
from bushcraft.store.depots import Depots
from bushcraft.store.lag import Lag, Late
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, StoreSettings, read_settings, write_settings


class FarDepot(LocalDepot):
    """A directory that is treated as another place, and does not answer when it is told so."""

    away = False

    def _answer(self) -> None:
        if self.away:
            raise UnreachableError(f"depot {self.name} does not answer")

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        self._answer()
        return super().fetch(name, begin, end)

    def fetch_all(self, name: str) -> bytes:
        self._answer()
        return super().fetch_all(name)

    def size(self, name: str) -> int:
        self._answer()
        return super().size(name)

    def holds(self, name: str, size: int) -> bool:
        self._answer()
        return super().holds(name, size)

    def ref_values(self, ref: str) -> list[tuple[int, str]]:
        self._answer()
        return super().ref_values(ref)

    def add_ref(self, ref: str, number: int, name: str) -> None:
        self._answer()
        super().add_ref(ref, number, name)


def depots(root: Path, copies: int = 2, off_provider: int = 1) -> Depots:
    """`a` and `b` here, `c` at another provider."""
    members = [LocalDepot.create(root / "a", "a"), *(FarDepot.create(root / n, n) for n in ("b", "c"))]
    settings = StoreSettings(
        copies=copies,
        off_provider=off_provider,
        depots=tuple(
            DepotSettings(name=name, url=str(root / name), provider=provider)
            for name, provider in (("a", "here"), ("b", "here"), ("c", "there"))
        ),
    )
    return Depots(members, settings, root)


def named(store: Depots, name: str) -> FarDepot:
    found = next(member for member in store.members if member.name == name)
    assert isinstance(found, LocalDepot)
    return found  # type: ignore[return-value]


def test_a_write_returns_when_the_policy_is_kept_and_the_rest_is_noted_as_late(tmp_path: Path) -> None:
    store = depots(tmp_path)
    name = store.put_bytes(b"weights")
    assert [member.name for member in store.members if member.has(name)] == ["a", "c"]
    late = store.lags["b"].summary()
    assert (late.objects, late.bytes, late.refs) == (1, 7, 0)


def test_who_is_late_catches_up_in_the_order_of_writing_once_something_is_published(tmp_path: Path) -> None:
    store = depots(tmp_path)
    name = store.put_bytes(b"weights")
    store.publish("checkpoints/r", name)
    store.background.wait()
    assert named(store, "b").read(name) == b"weights"
    assert named(store, "b").history("checkpoints/r") == [(1, name)]
    assert not store.lags["b"]


def test_a_reference_never_arrives_before_its_object(tmp_path: Path) -> None:
    store = depots(tmp_path, copies=1, off_provider=0)
    name = store.put_bytes(b"weights")
    named(store, "b").away = named(store, "c").away = True
    store.publish("checkpoints/r", name)
    store.background.wait()
    assert named(store, "b").refs() == named(store, "c").refs() == []
    named(store, "b").away = named(store, "c").away = False
    store.background.follow()
    store.background.wait()
    assert all(member.read(name) == b"weights" and member.latest("checkpoints/r") == name for member in store.members)


def test_a_depot_that_is_away_is_replaced_by_the_next_and_the_write_is_refused_when_there_is_none(
    tmp_path: Path,
) -> None:
    store = depots(tmp_path, copies=2, off_provider=0)
    named(store, "b").away = True
    name = store.put_bytes(b"one")
    assert [member.name for member in store.members if member.has(name)] == ["a", "c"]
    named(store, "c").away = True
    with pytest.raises(StoreError, match=r"is in 1 depots and not in 2 depots \(b: depot b does not answer; c:"):
        store.put_bytes(b"two")
    with pytest.raises(StoreError, match="reference checkpoints/r is in 1 depots"):
        store.publish("checkpoints/r", name)


def test_off_provider_is_kept_before_nearness(tmp_path: Path) -> None:
    store = depots(tmp_path, copies=1, off_provider=1)
    name = store.put_bytes(b"x")
    assert [member.name for member in store.members if member.has(name)] == ["c"]


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"w3ights"), lambda p: os.truncate(p, 2)]
)
def test_a_bad_copy_costs_time_only_and_is_mended(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = depots(tmp_path)
    name = store.put_bytes(b"weights")
    damage(named(store, "a").path(name))
    assert store.read(name) == b"weights"
    store.background.wait()
    assert named(store, "a").read(name) == b"weights"
    assert name in (tmp_path / "repairs.jsonl").read_text()


def test_a_range_falls_back_by_the_readers_own_checksum(tmp_path: Path) -> None:
    store = depots(tmp_path)
    data = os.urandom(1000)
    name = store.put_bytes(data)
    named(store, "a").path(name).write_bytes(bytes(1000))
    assert store.read_range(name, 10, 20, data[10:20].__eq__) == data[10:20]
    store.background.wait()
    assert named(store, "a").read(name) == data


def test_what_no_depot_has_good_is_said_for_each(tmp_path: Path) -> None:
    store = depots(tmp_path)
    name = store.put_bytes(b"weights")
    named(store, "a").path(name).write_bytes(b"")
    named(store, "c").path(name).write_bytes(b"")
    with pytest.raises(CorruptObjectError, match="corrupted in a, missing in b, corrupted in c"):
        store.read(name)
    with pytest.raises(MissingObjectError):
        store.read("ab" * 32)
    named(store, "b").away = True
    with pytest.raises(UnreachableError, match="unreachable in b"):
        store.read("ab" * 32)


def test_the_newest_value_is_that_of_all_depots(tmp_path: Path) -> None:
    store = depots(tmp_path)
    name = store.put_bytes(b"1")
    store.publish("r", name)
    store.background.wait()
    other = object_name(b"2")
    named(store, "c").store_bytes(other, b"2")
    named(store, "c").add_ref("r", 2, other)
    assert store.history("r") == [(2, other), (1, name)]
    named(store, "c").away = True
    assert store.latest("r") == name


def test_large_files_are_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.store.mend.READ_BYTES", 100)
    store = depots(tmp_path)
    data = os.urandom(1050)
    with store.new_file() as new:
        new.write(data)
        name = store.put_file(new)
    store.publish("r", name)
    store.background.wait()
    assert all(member.read(name) == data for member in store.members)
    assert list((tmp_path / "a" / "incoming").iterdir()) == []


def test_a_full_local_disk_is_replaced_by_other_depots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = depots(tmp_path)

    def full(*_: object) -> None:
        raise StoreError(f"cannot write: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(store.members[0], "store_bytes", full)
    name = store.put_bytes(b"weights")
    assert [member.name for member in store.members if member.has(name)] == ["b", "c"]


def test_the_union_of_all_depots_is_listed_once(tmp_path: Path) -> None:
    store = depots(tmp_path)
    names = {store.put_bytes(bytes([i])) for i in range(20)}
    assert [name for name, _ in store.objects()] == sorted(names)


def test_a_journal_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    lag = Lag(tmp_path, "b")
    lag.add(Late("a" * 64, 1, 0.0))
    os.truncate(tmp_path / "b.jsonl", 20)
    lag.add(Late("b" * 64, 1, 0.0))
    assert [late.object for _, late in lag.entries()] == ["b" * 64]
    for position, _ in lag.entries():
        lag.done(position)
    assert not lag
    assert (tmp_path / "b.jsonl").stat().st_size == 0


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = StoreSettings(
        copies=2,
        off_provider=1,
        depots=(
            DepotSettings(name="local", url="depot"),
            DepotSettings(
                name="r2", url="s3://b/p", provider="r2", options={"endpoint": "http://x", "allow_http": True}
            ),
        ),
    )
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("copies = 2", "copies = 2 needs as many depots, and there are 1"),
        ("off_provider = 1", "off_provider = 1 needs so many"),
        ("copy = 2", "Extra inputs are not permitted"),
        ("[[depots]]\nname='a'\nurl='s3://x'\noptions={secret_access_key='s3cret'}", "is a secret"),
        ("copies =", "not valid TOML"),
    ],
)
def test_wrong_settings_are_refused_in_one_line_without_the_secret(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "store.toml").write_text(text)
    with pytest.raises(StoreError, match=told) as refused:
        read_settings(tmp_path)
    assert "s3cret" not in str(refused.value)


def test_a_depot_that_cannot_hold_all_is_not_filled_by_reads_or_writes(tmp_path: Path) -> None:
    store = depots(tmp_path, copies=1, off_provider=1)
    partial = tuple(one.model_copy(update={"complete": one.name == "c"}) for one in store.settings.depots)
    store = Depots(store.members, store.settings.model_copy(update={"depots": partial}), tmp_path)
    name = store.put_bytes(b"terabytes")
    store.publish("r", name)
    assert store.read(name) == b"terabytes"
    store.background.wait()
    assert [member.name for member in store.members if member.has(name)] == ["c"]
    assert not any(store.lags.values())
    named(store, "a").store_bytes(name, b"t3rabytes")
    assert store.read(name) == b"terabytes"
    store.background.wait()
    assert named(store, "a").read(name) == b"terabytes", "what is there and bad is mended all the same"
