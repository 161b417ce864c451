"""`bushcraft train` with several ranks as a user types it: started by itself or torchrun, stopped, killed, refused."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from tests.train.conftest import arguments, events_of, train

LONG = "run.sequences=40000"
PATIENCE = 120


@contextmanager
def started(store: Store, name: str, *settings: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once its first step is made."""
    command = [sys.executable, "-m", "bushcraft.cli", *arguments(store, name, *settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("step") for line in process.stdout)
            yield process
        finally:
            process.kill()


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """In the order of their ranks."""
    found = [p for p in psutil.Process(process.pid).children() if "RANK" in p.environ()]
    return sorted(found, key=lambda rank: int(rank.environ()["RANK"]))


@pytest.mark.slow
def test_the_command_starts_its_ranks_and_reports_once(text_store: Store, reference: str) -> None:
    done = train(text_store, "two-ranks", "parallel.shard=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begins: ") == done.stdout.count("held-out     ") == 1
    assert "2 ranks (shard 2)" in done.stdout
    found = compare(text_store, "two-ranks", reference)
    assert found.first_difference is None
    assert found.compared_to == 96


@pytest.mark.slow
def test_torchrun_starts_ranks_too_and_another_number_of_them_goes_on(text_store: Store, reference: str) -> None:
    begun = train(text_store, "torchrun", "parallel.tensor=2", "run.sequences=96", "run.threads=1")
    assert begun.returncode == 0, begun.stderr
    again = [*arguments(text_store, "by-torchrun"), "--json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "-m", "bushcraft.cli", *again]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["position"] == 96
    assert compare(text_store, "by-torchrun", reference).first_difference is None


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_with_a_checkpoint(text_store: Store) -> None:
    with started(text_store, "stopped-ranks", LONG, "parallel.shard=2") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "checkpoint written, the same command goes on" in out
    *_, last, interrupted = events_of(text_store, "stopped-ranks")
    assert (last.type, interrupted.type) == ("checkpoint", "interrupted")
    assert last.position == interrupted.position > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_soon_and_is_named(text_store: Store, victim: int) -> None:
    with started(text_store, f"killed-rank-{victim}", LONG, "parallel.shard=2") as process:
        ranks = ranks_of(process)
        ranks[victim].kill()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"error: rank {victim} was killed by SIGKILL; the other ranks are stopped" in err
    assert "Traceback" not in err
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("parallel.tensor=3",), "parallel.tensor = 3 does not divide model.n_heads = 4. Use 1 or 2"),
        (
            ("parallel.context=3",),
            "parallel.context = 3 does not fit 4 query heads and 2 key/value heads. Use 1, 2 or 4",
        ),
        (("parallel.pipe=3",), "parallel.pipe = 3 times 1 stages is more than model.n_layers = 2. Use 1 or 2"),
        (
            ("parallel.pipe=2", "run.microbatch_size=8"),
            "1 microbatches of run.microbatch_size do not fit 2 pipeline stages: there have to be 2 or more. "
            "Use run.microbatch_size = 1, 2 or 4",
        ),
        (
            ("parallel.pipe=2", "model.kind=encoder_decoder", "objective.kind=prefix"),
            "parallel.pipe = 2 does not work with an encoder-decoder",
        ),
    ],
)
def test_a_layout_that_does_not_fit_says_which_numbers_would(
    text_store: Store, settings: tuple[str, ...], message: str
) -> None:
    done = train(text_store, "refused", *settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (text_store.runs / "refused").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--world-size", "8"), "--world-size and --device-memory are those of a dry run. Add --dry-run"),
        (("--device-memory", "80"), "--world-size and --device-memory are those of a dry run. Add --dry-run"),
        (("--dry-run", "--device-memory", "-1"), "--device-memory"),
        (("--dry-run", "--world-size", "3", "--set", "parallel.shard=2"), "parallel.shard = 2 does not fit 3 ranks"),
    ],
)
def test_what_a_dry_run_cannot_be_asked_is_told(options: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "bushcraft.cli", "train", "smoke", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
