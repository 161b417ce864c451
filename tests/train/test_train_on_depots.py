"""A run on a local disk and a real S3 server: it goes on when one of them is lost, and loses nothing."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bushcraft.checkpoint.newest import checkpoints, verify
from bushcraft.store.care.replicate import note_all, replicate
from bushcraft.store.depots import Depots
from bushcraft.store.initialise import initialise
from bushcraft.store.memory import remove_memory
from bushcraft.store.workspace import Store
from bushcraft.train import trainer
from bushcraft.train.compare import compare
from bushcraft.train.progress import stdout_console
from bushcraft.train.stop import StopRequest
from tests.store.s3_servers import BUCKET, KEY, SECRET, FaultyProxy, options, running_moto
from tests.train.conftest import arguments, events_of, tiny_session, train
from tests.train.small_store import small_store

KILLED_RUN = Path(__file__).with_name("killed_run.py")


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with running_moto() as address:
        proxy = FaultyProxy(address)
        yield proxy
        proxy.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("TEST_SECRET_ACCESS_KEY", SECRET)


def on_two_depots(root: Path, proxy: FaultyProxy, prefix: str, copies: int) -> Store:
    """The small store, and a copy of all of it in a bucket."""
    small_store(root)
    url = f"s3://{BUCKET}/{prefix}"
    chosen = {"there": options(proxy.address, attempts=2, deadline=2, connect_timeout=1)}
    initialise(root, {"there": url}, {"there": "elsewhere"}, chosen, copies, copies - 1)  # type: ignore[arg-type]
    store = Store.open(root)
    assert isinstance(store.depot, Depots)
    note_all(store.depot)
    replicate(store.depot)
    return store


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_a_provider_that_deletes_everything_costs_time_only(tmp_path: Path, proxy: FaultyProxy) -> None:
    store = on_two_depots(tmp_path / "store", proxy, "deleted", copies=2)
    assert train(store, "whole").returncode == 0
    command = [sys.executable, str(KILLED_RUN), "110", "before", *arguments(store, "deleted")]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    remove_memory(store.root, "deleted")
    for folder in ("objects", "refs"):
        shutil.rmtree(store.root / "depot" / folder)
    done = train(store, "deleted")
    assert done.returncode == 0, done.stderr
    assert "goes on at" in done.stdout
    assert compare(store, "whole", "deleted").identical


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_a_bucket_that_is_away_for_a_while_catches_up(tmp_path: Path, proxy: FaultyProxy) -> None:
    store = on_two_depots(tmp_path / "store", proxy, "away", copies=1)
    assert isinstance(store.depot, Depots)
    proxy.cut = lambda _: True
    with tiny_session(store, "away") as session:
        trainer.train(session, stdout_console(quiet=True), StopRequest())
    assert all("failed" not in event.data for event in events_of(store, "away") if event.type == "checkpoint")
    assert store.depot.lags["there"].summary().refs >= 4
    proxy.cut = lambda _: False
    again = Store.open(store.root).depot
    assert isinstance(again, Depots)
    replicate(again)
    bucket = next(member for member in again.members if member.name == "there")
    assert not again.lags["there"]
    for _, name in checkpoints(bucket, "away"):
        verify(bucket, name)
    assert checkpoints(bucket, "away") == checkpoints(again.members[0], "away")


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_where_two_copies_are_wanted_a_save_without_the_bucket_is_said_to_have_failed(
    tmp_path: Path, proxy: FaultyProxy
) -> None:
    store = on_two_depots(tmp_path / "store", proxy, "two", copies=2)

    def cut_from_step(position: int) -> None:
        proxy.cut = lambda _: 16 <= position < 40

    update = trainer._update
    with tiny_session(store, "two", "checkpoint.asynchronous=false") as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "LAST_SAVE_PAUSES", (1.0,) * 20)
        patch.setattr(
            trainer, "_update", lambda held, *inputs: (cut_from_step(held.position), update(held, *inputs))[1]
        )
        trainer.train(session, stdout_console(quiet=True), StopRequest())
    events = [event for event in events_of(store, "two") if event.type == "checkpoint"]
    assert "not in 2 depots" in events[0].data["failed"]
    assert "manifest" in events[-1].data
    assert events[-1].position == 96
