"""Start the ranks of one machine, watch them, and end them all when one fails.

The process that starts them hosts the store through which they meet, so that no rank's end takes it away. It hears
Ctrl-C and SIGTERM in place of the ranks, which are in process groups of their own, and passes each on once.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

from bushcraft.errors import BushcraftError, RunError

LAUNCHER = "BUSHCRAFT_LAUNCHER"
"""The variable that tells a rank the process id of who started it."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_WORDS_S = 1.0
"""How long to wait for what a rank that ended has printed."""

Events = SimpleQueue["int | signal.Signals"]
"""What the watcher hears of: the number of a rank that ended, or a signal."""


@dataclass(frozen=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: threading.Thread | None
    """Copies what the rank prints on stderr; None where it has ours."""


def run_ranks(
    n: int,
    command: list[str],
    environment: Mapping[str, str],
    terminate_after: float = 5.0,
    kill_after: float = 10.0,
) -> int:
    """Run `command` as `n` ranks on this machine; the exit status of the first that fails, else 0.

    A rank that a signal killed counts as 128 + its number. `terminate_after` seconds after a failure the other ranks
    get SIGTERM, and `kill_after` seconds later SIGKILL: they may wait for the failed one inside of a collective.
    Rank 0 has our stdin, stdout and stderr; of the others only stderr is shown, with their rank before each line.
    `command` has to be the rank itself, no wrapper that waits for it. To be called in the main thread.

    Errors: `RunError` if the command cannot be started.
    """
    from bushcraft.parallel.rendezvous import host_store  # and torch, which others need not wait for

    store = host_store()
    events: Events = SimpleQueue()
    ranks: list[_Rank] = []
    with _signals_into(events):
        try:
            for number in range(n):
                ranks.append(_start(number, command, {**environment, **_variables(number, n, store.port)}, events))
            return _watch(ranks, events, terminate_after, kill_after)
        except OSError as error:
            raise RunError(f"cannot start rank {len(ranks)}: {command[0]}: {error.strerror}") from error
        finally:
            for rank in ranks:
                if rank.process.returncode is None:  # else its id may be another's by now
                    _kill(rank)


def die_with_parent(environment: Mapping[str, str]) -> None:
    """In a rank: be killed when who started it dies, even by SIGKILL. Nothing to do in ranks that others start."""
    if LAUNCHER not in environment:
        return
    launcher = int(environment[LAUNCHER])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _die_without(launcher)  # it may have died before we asked
    else:
        threading.Thread(target=_watch_parent, args=(launcher,), daemon=True).start()


def _die_without(launcher: int) -> None:
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch_parent(launcher: int) -> None:
    while True:
        _die_without(launcher)
        time.sleep(1.0)


def _variables(number: int, n: int, port: int) -> dict[str, str]:
    """What torchrun would tell the rank, and that gloo need not leave this machine."""
    return {
        "RANK": str(number),
        "WORLD_SIZE": str(n),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        LAUNCHER: str(os.getpid()),
    }


@contextlib.contextmanager
def _signals_into(events: Events) -> Iterator[None]:
    def hear(number: int, _frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(number: int, command: list[str], environment: dict[str, str], events: Events) -> _Rank:
    """Start one rank; `events` hears of its end."""
    is_first = number == 0
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=None if is_first else subprocess.DEVNULL,
        stdout=None if is_first else subprocess.DEVNULL,
        stderr=None if is_first else subprocess.PIPE,
        process_group=0,
    )

    def tell_end() -> None:
        process.wait()
        events.put(number)

    threading.Thread(target=tell_end, daemon=True).start()
    if process.stderr is None:
        return _Rank(number, process, None)
    log = threading.Thread(target=_copy_lines, args=(process.stderr, f"[rank {number}] "), daemon=True)
    log.start()
    return _Rank(number, process, log)


def _copy_lines(stream: IO[bytes], prefix: str) -> None:
    """Show a rank's lines on stderr, each in one write. Reads on when ours is gone: a full pipe would stop the rank."""
    for line in stream:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{prefix}{line.decode(errors='replace').rstrip()}\n")


def _watch(ranks: list[_Rank], events: Events, terminate_after: float, kill_after: float) -> int:
    """Pass signals on until all ranks have ended; after the first failure end the others, ever harder."""
    running = {rank.number: rank for rank in ranks}
    status = 0
    measures: list[tuple[float, signal.Signals]] = []
    while running:
        try:
            event = events.get(timeout=max(0.0, measures[0][0] - time.monotonic()) if measures else None)
        except Empty:
            _signal_all(running, measures.pop(0)[1])
            continue
        if isinstance(event, signal.Signals):
            _signal_all(running, event)
            continue
        rank = running.pop(event)
        _kill(rank)  # what it has left behind
        if rank.log is not None:
            rank.log.join(_LAST_WORDS_S)
        if rank.process.returncode and not status:
            status = _tell_failure(rank)
            terminate_at = time.monotonic() + terminate_after
            measures = [(terminate_at, signal.SIGTERM), (terminate_at + kill_after, signal.SIGKILL)]
    return status


def _signal_all(running: Mapping[int, _Rank], number: signal.Signals) -> None:
    for rank in running.values():
        if number == signal.SIGKILL:
            _kill(rank)
        else:
            rank.process.send_signal(number)


def _kill(rank: _Rank) -> None:
    """Kill a rank with all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rank.process.pid, signal.SIGKILL)


def _tell_failure(rank: _Rank) -> int:
    """Say how a rank ended; its exit status as a shell counts it."""
    code = rank.process.returncode
    if code == BushcraftError.exit_code:  # it has told the user what is wrong
        return code
    how = f"ended with exit status {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    print(f"error: rank {rank.number} {how}; the other ranks are stopped", file=sys.stderr)
    return code if code > 0 else 128 - code
