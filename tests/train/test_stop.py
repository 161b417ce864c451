"""One Ctrl-C is enough, wherever the run is, and the same command goes on to the same bits."""

import subprocess
import sys

import pytest

from bushcraft.checkpoint.newest import checkpoints
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from tests.train.conftest import arguments, events_of, train, train_and_stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "call", "settings", "position"),
    [
        ("bushcraft.train.trainer._update", 2, (), 16),
        ("bushcraft.train.heldout.losses", 2, (), 48),
        ("bushcraft.train.heldout.losses", 2, ("evaluate.every_sequences=0",), 96),
        ("bushcraft.model.generate.next_logits", 3, (), 96),
    ],
    ids=["step", "evaluation", "last evaluation", "samples"],
)
def test_one_ctrl_c_stops_soon_and_the_same_command_goes_on(
    text_store: Store, reference: str, function: str, call: int, settings: tuple[str, ...], position: int
) -> None:
    name = f"asked-{function.rpartition('.')[2].strip('_')}-{position}"
    told, more_calls = train_and_stop(text_store, name, function, call, *settings)
    assert more_calls <= 1
    assert [line for line in told.splitlines() if "stopped" in line] == told.splitlines()[-1:]
    assert f"stopped at position {position} of 96" in told
    assert ("before the last evaluation" in told) == (position == 96)
    events = events_of(text_store, name)
    assert (events[-1].type, events[-1].position) == ("interrupted", position)
    saved = [event.position for event in events if event.type == "checkpoint"]
    assert saved == [p for p in (24, 48, 72, 96) if p < position] + [position]

    done = train(text_store, name, *settings)
    assert done.returncode == 0, done.stderr
    events = events_of(text_store, name)
    assert events[-1].type == "finished"
    evaluated = [event.position for event in events if event.type == "evaluation"]
    assert set(evaluated) == ({96} if settings else {48, 96})
    saved = [event.position for event in events if event.type == "checkpoint"]
    assert len(saved) == len(set(saved)) == len(checkpoints(text_store.depot, name))
    assert compare(text_store, reference, name).identical


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(text_store: Store) -> None:
    command = [
        sys.executable,
        "-c",
        "import os, signal; from bushcraft.train import heldout;"
        "heldout.losses = lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)];"
        "from bushcraft.cli import main; main()",
        *arguments(text_store, "twice"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert checkpoints(text_store.depot, "twice")
