"""A run that is stopped or killed goes on to the same bits, and says what it did."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.checkpoint.newest import checkpoints, verify
from bushcraft.ledger.goodput import goodput
from bushcraft.store.memory import remove_memory
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from tests.train.conftest import arguments, events_of, tiny_session, train

KILLED_RUN = Path(__file__).with_name("killed_run.py")


def train_and_kill(store: Store, name: str, operation: int, when: str) -> int:
    command = [sys.executable, str(KILLED_RUN), str(operation), when, *arguments(store, name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).returncode


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_run_killed_at_random_durable_operations_ends_bit_identical(
    text_store: Store, reference: str, seed: int
) -> None:
    name, rng = f"killed-{seed}", random.Random(seed)
    operations = len(events_of(text_store, reference))
    codes = [
        train_and_kill(text_store, name, rng.randint(3, 6 * operations), rng.choice(["before", "after"]))
        for _ in range(2)
    ]
    assert -signal.SIGKILL in codes
    done = train(text_store, name)
    assert done.returncode == 0, done.stderr
    found = compare(text_store, reference, name)
    assert found.identical, found
    assert found.weights_at == 96
    for _, checkpoint in checkpoints(text_store.depot, name):
        verify(text_store.depot, checkpoint)
    spent = goodput(events_of(text_store, name))
    assert sum(spent.shares().values()) == pytest.approx(100)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(text_store: Store, reference: str) -> None:
    command = [sys.executable, "-u", "-m", "bushcraft.cli", *arguments(text_store, "stopped")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    if events_of(text_store, "stopped")[-1].type == "interrupted":
        assert "the same command goes on" in told
        assert train(text_store, "stopped").returncode == 0
    assert compare(text_store, reference, "stopped").identical


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(text_store: Store, reference: str) -> None:
    assert train_and_kill(text_store, "damaged", 110, "before") == -signal.SIGKILL
    saved = checkpoints(text_store.depot, "damaged")
    manifest = read_manifest(text_store.depot, saved[0][1])
    tensor = manifest.tensors["model/norm.weight"].chunks[0]
    path = text_store.depot.path(tensor.object)
    good = path.read_bytes()
    path.write_bytes(good[: tensor.begin] + b"\xff" + good[tensor.begin + 1 :])
    remove_memory(text_store.root, "damaged")  # as a machine does that is started again
    done = train(text_store, "damaged")
    assert done.returncode == 0, done.stderr
    assert "is passed over" in done.stdout
    assert "model/norm.weight" in done.stdout
    path.write_bytes(good)
    assert compare(text_store, reference, "damaged").identical


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_on_the_disk_is_read_from_memory_and_mended(
    text_store: Store, reference: str
) -> None:
    assert train_and_kill(text_store, "remembered", 75, "before") == -signal.SIGKILL
    (_, name), *_ = checkpoints(text_store.depot, "remembered")
    manifest = read_manifest(text_store.depot, name)
    for lost in {chunk.object for entry in manifest.tensors.values() for chunk in entry.chunks}:
        text_store.depot.path(lost).unlink()
    done = train(text_store, "remembered")
    assert f"goes on at {manifest.position} of 96" in done.stdout, done.stderr
    assert "is passed over" not in done.stdout
    assert compare(text_store, reference, "remembered").identical


@pytest.mark.slow
def test_lost_run_directory_is_restored_from_the_depot(text_store: Store, reference: str) -> None:
    assert train_and_kill(text_store, "lost", 75, "before") == -signal.SIGKILL
    directory = text_store.runs / "lost"
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    done = train(text_store, "lost")
    assert "restored the ledger" in done.stdout, done.stderr
    assert compare(text_store, reference, "lost").identical


@pytest.mark.slow
def test_changed_batch_size_is_a_record_and_survives_a_kill(text_store: Store) -> None:
    changed = ("run.global_batch_size=16",)
    for name in ("whole", "broken"):
        command = [sys.executable, str(KILLED_RUN), "40", "before", *arguments(text_store, name)]
        assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    command = [sys.executable, str(KILLED_RUN), "12", "after", *arguments(text_store, "broken", *changed)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    for name in ("whole", "broken"):
        done = train(text_store, name, *changed)
        assert done.returncode == 0, done.stderr
    assert compare(text_store, "whole", "broken").identical
    record = next(event for event in events_of(text_store, "whole") if event.type == "change")
    assert record.data["global_batch_size"] == 16
    last = [event for event in events_of(text_store, "whole") if event.type == "step"][-1]
    assert last.position - last.data["begin"] in {16, (96 - record.position) % 16}


@pytest.mark.slow
def test_other_recipe_under_the_same_name_is_refused_in_one_line(text_store: Store, reference: str) -> None:
    done = train(text_store, reference, "optimizer.learning_rate=1e-4")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "optimizer.learning_rate (0.005 → 0.0001)" in done.stderr


@pytest.mark.slow
def test_finished_run_shows_its_report_again(text_store: Store, reference: str) -> None:
    before = len(events_of(text_store, reference))
    done = train(text_store, reference)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert "bits/byte" in done.stdout
    assert len(events_of(text_store, reference)) == before


@pytest.mark.slow
def test_runs_that_read_other_data_differ_at_a_named_position(text_store: Store, reference: str) -> None:
    done = train(text_store, "seeded", "run.seed=1")
    assert done.returncode == 0, done.stderr
    found = compare(text_store, reference, "seeded")
    assert found.first_difference == 0
    assert not found.identical
    assert found.recipe == {"run.seed": (0, 1)}


@pytest.mark.slow
def test_full_disk_ends_in_one_line_and_loses_nothing(text_store: Store) -> None:
    """RLIMIT_FSIZE makes writes fail as a full disk does, at a size that only a checkpoint reaches."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from bushcraft.cli import main; main()"
    )
    command = [sys.executable, "-c", script, *arguments(text_store, "full")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 2, done.stderr
    assert re.match("error: cannot (write|reserve memory in) ", done.stderr)
    assert done.stderr.count("\n") == 1
    assert not checkpoints(text_store.depot, "full")
    assert train(text_store, "full").returncode == 0


def test_what_a_killed_process_left_in_the_depot_is_removed(text_store: Store) -> None:
    (text_store.depot.root / "incoming" / "1-abandoned").write_bytes(b"half a checkpoint")
    with tiny_session(text_store, "cleans"):
        assert not list((text_store.depot.root / "incoming").iterdir())


def test_json_of_a_run_is_json(text_store: Store, reference: str) -> None:
    for command in (["run", "list"], ["run", "show", reference], ["run", "events", reference], ["checkpoint", "list"]):
        done = subprocess.run(
            [sys.executable, "-m", "bushcraft.cli", *command, "--store", str(text_store.root), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
