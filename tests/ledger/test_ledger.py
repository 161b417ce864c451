"""A ledger survives kills and notices damage; its time sums to the whole."""

import fcntl
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.errors import RunError, StoreError
from bushcraft.ledger.events import Event
from bushcraft.ledger.goodput import goodput
from bushcraft.ledger.ledger import Ledger, read_ledger, restore_ledger
from bushcraft.ledger.phases import PhaseClock
from bushcraft.store.local import LocalDepot


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def test_events_come_back_and_a_new_process_is_a_new_generation(directory: Path, depot: LocalDepot) -> None:
    for generation in range(2):
        ledger = Ledger.open(directory, "a", depot)
        ledger.append("step", 8, loss=0.1 + generation)
        ledger.close()
    events = read_ledger(directory, "a")
    assert [(e.sequence, e.generation, e.data["loss"]) for e in events] == [(0, 0, 0.1), (1, 1, 1.1)]


@pytest.mark.parametrize("cut", [1, 10, 50])
def test_line_that_a_kill_tore_is_dropped_and_nothing_else(directory: Path, depot: LocalDepot, cut: int) -> None:
    ledger = Ledger.open(directory, "a", depot)
    for position in range(3):
        ledger.append("step", position)
    ledger.close()
    path = directory / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [e.position for e in read_ledger(directory, "a")] == [0, 1]
    ledger = Ledger.open(directory, "a", depot)
    ledger.append("step", 7)
    ledger.close()
    assert [e.position for e in read_ledger(directory, "a")] == [0, 1, 7]


def test_a_lost_ledger_is_restored_with_the_lock_held(directory: Path, depot: LocalDepot) -> None:
    """Else a process that comes second would replace the file that the first one is writing."""
    first = Ledger.open(directory, "a", depot)
    (directory / "ledger.jsonl").unlink()
    with pytest.raises(RunError, match="another process"):
        Ledger.open(directory, "a", depot, restore=lambda: pytest.fail("restored what another process holds"))
    first._lock.close()
    restored = []
    Ledger.open(directory, "a", depot, restore=lambda: restored.append(True)).close()
    assert restored == [True]
    Ledger.open(directory, "a", depot, restore=lambda: pytest.fail("restored what is there")).close()


def test_a_look_at_the_lock_does_not_keep_a_run_from_starting(directory: Path, depot: LocalDepot) -> None:
    """`bushcraft run list` asks by a shared lock whether a run is going on; here until the run was refused."""
    Ledger.open(directory, "a", depot).close()
    waits: list[float] = []
    with (directory / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def let_go(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(file, fcntl.LOCK_UN)

        with mock.patch("bushcraft.ledger.ledger.time.sleep", let_go):
            Ledger.open(directory, "a", depot).close()
    assert len(waits) == 1


def test_what_a_killed_process_left_beside_the_ledger_is_removed(directory: Path, depot: LocalDepot) -> None:
    Ledger.open(directory, "a", depot).close()
    (directory / ".seals.json.123.tmp").write_bytes(b"[")
    Ledger.open(directory, "a", depot).close()
    assert sorted(path.name for path in directory.iterdir()) == ["ledger.jsonl", "lock"]


def test_every_flipped_byte_of_a_line_is_noticed() -> None:
    line = Event("step", 3, 1.5, 2.5, 0, "node", 0, 64, {"step": 1.0}, {"loss": 0.25, "note": "ü"}).to_line()
    for at in range(len(line) - 1):
        damaged = bytearray(line)
        damaged[at] ^= 1
        with pytest.raises((ValueError, TypeError)):
            Event.from_line(bytes(damaged))


@given(
    data=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9))
)
def test_any_event_round_trips(data: dict[str, object]) -> None:
    event = Event("step", 0, 1.0, 2.0, 0, "n", 0, 1, {}, data)
    assert Event.from_line(event.to_line()) == event


def test_damaged_line_is_named(directory: Path, depot: LocalDepot) -> None:
    ledger = Ledger.open(directory, "a", depot)
    for position in range(3):
        ledger.append("step", position)
    ledger.close()
    path = directory / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"step", b"stop") + lines[2])
    with pytest.raises(StoreError, match="line 2 is damaged"):
        read_ledger(directory, "a")
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(StoreError, match="lines are missing"):
        read_ledger(directory, "a")


def test_second_process_is_refused(directory: Path, depot: LocalDepot) -> None:
    ledger = Ledger.open(directory, "a", depot)
    with pytest.raises(RunError, match="another process"):
        Ledger.open(directory, "a", depot)
    ledger.close()
    Ledger.open(directory, "a", depot).close()


def test_lost_ledger_comes_back_from_its_sealed_segments(directory: Path, depot: LocalDepot) -> None:
    roots = []
    for generation in range(2):
        ledger = Ledger.open(directory, "a", depot)
        for position in range(3):
            ledger.append("step", 10 * generation + position)
        roots.append(ledger.seal())
        ledger.close()
    before = read_ledger(directory, "a")
    for file in directory.iterdir():
        file.unlink()
    restore_ledger(directory, depot, roots[-1])
    assert read_ledger(directory, "a") == before
    ledger = Ledger.open(directory, "a", depot)
    assert ledger.seal() == roots[-1]
    ledger.close()


def test_unknown_run_is_refused(directory: Path) -> None:
    with pytest.raises(RunError, match="no run 'a'"):
        read_ledger(directory, "a")


@given(st.lists(st.tuples(st.sampled_from(["step", "data", "save", "evaluate"]), st.floats(0.001, 100)), max_size=20))
def test_phases_sum_to_the_time_that_passed(stays: list[tuple[str, float]]) -> None:
    now = [0.0]
    clock = PhaseClock(now=lambda: now[0], started=0.0)
    for phase, seconds in stays:
        clock.enter(phase)  # type: ignore[arg-type]
        now[0] += seconds
    assert sum(clock.take().values()) == pytest.approx(now[0], abs=1e-4)
    assert clock.take() == {}


def _event(sequence: int, type_: str, wall: float, generation: int, position: int, **phases: float) -> Event:
    return Event(type_, sequence, wall, wall, generation, "n", 0, position, phases)  # type: ignore[arg-type]


def test_goodput_names_what_a_crash_cost_and_sums_to_the_whole() -> None:
    events = [
        _event(0, "start", 10.0, 0, 0, init=10.0),
        _event(1, "step", 12.0, 0, 8, data=0.5, step=1.5),
        _event(2, "step", 14.0, 0, 16, step=2.0),  # lost: the next process goes on at 8
        _event(3, "start", 27.0, 1, 8, load=3.0),
        _event(4, "step", 29.0, 1, 16, step=2.0),
    ]
    found = goodput(events)
    assert found.seconds == {"init": 10.0, "data": 0.5, "step": 3.5, "redone": 2.0, "down": 10.0, "load": 3.0}
    assert found.total == pytest.approx(29.0)
    assert sum(found.shares().values()) == pytest.approx(100)
