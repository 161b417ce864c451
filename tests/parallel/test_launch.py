"""Ranks of one machine end together: whatever happens to one of them, or to who started them.

The launcher runs in a process of its own, as a command would run it; small programs stand for the ranks.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bushcraft.errors import RunError
from bushcraft.parallel.launch import run_ranks

LAUNCHER = """
import os, sys
from bushcraft.parallel.launch import run_ranks
sys.exit(run_ranks({n}, [sys.executable, "-c", sys.argv[1]], os.environ, {terminate_after}, {kill_after}))
"""
RANK = "import os, signal, sys, time; from pathlib import Path; rank = int(os.environ['RANK'])\n"
READY = "Path(f'ready-{rank}').write_text(str(os.getpid()))\n"
WAIT = "time.sleep(300)\n"
JOIN = """
from datetime import timedelta
from bushcraft.parallel.launch import die_with_parent
from bushcraft.parallel.world import join, leave, world_of
import torch, torch.distributed as dist
torch.set_num_threads(1)
die_with_parent(os.environ)
join(world_of(os.environ), "cpu", timedelta(seconds=300))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a launcher whose ranks run `program`, in `tmp_path`, in a session of its own."""
    launchers = []

    def start_launcher(
        n: int, program: str, terminate_after: float = 0.1, kill_after: float = 0.1
    ) -> subprocess.Popen[str]:
        source = LAUNCHER.format(n=n, terminate_after=terminate_after, kill_after=kill_after)
        launcher = subprocess.Popen(
            [sys.executable, "-c", source, RANK + program],
            cwd=tmp_path,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        launchers.append(launcher)
        return launcher

    yield start_launcher
    for launcher in launchers:
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == launcher.pid:
                    os.kill(pid, signal.SIGKILL)
        launcher.communicate(timeout=60)


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pids(directory: Path, n: int) -> list[int]:
    """The process ids that `n` ranks wrote once they were ready."""
    files = [directory / f"ready-{rank}" for rank in range(n)]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_first_failing_exit_status_is_returned_and_told(start: Start) -> None:
    launcher = start(3, "sys.exit({0: 0, 1: 7, 2: 0}[rank])")
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 7
    assert stderr == "error: rank 1 ended with exit status 7; the other ranks are stopped\n"


def test_ranks_that_all_succeed_are_quiet(start: Start) -> None:
    launcher = start(2, "time.sleep(0.3 * rank)")
    assert launcher.communicate(timeout=60) == ("", "")
    assert launcher.returncode == 0


def test_rank_0_has_the_terminal_and_the_others_prefix_their_stderr(start: Start) -> None:
    program = """
if rank == 0: print(sys.stdin.read())
print(f'out {rank}')
print(f'first {rank}', file=sys.stderr)
print(f'last {rank}', end='' if rank else '\\n', file=sys.stderr)
"""
    launcher = start(2, program)
    stdout, stderr = launcher.communicate("typed", timeout=60)
    assert stdout == "typed\nout 0\n"
    assert sorted(stderr.splitlines()) == ["[rank 1] first 1", "[rank 1] last 1", "first 0", "last 0"]


def test_each_rank_knows_its_place(start: Start, tmp_path: Path) -> None:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR"
    launcher = start(2, f"Path(str(rank)).write_text(' '.join(os.environ[name] for name in '{names}'.split()))")
    launcher.communicate(timeout=60)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0 2 0 2 127.0.0.1", "1 2 1 2 127.0.0.1"]


def test_killed_rank_is_named_and_ends_the_others(start: Start, tmp_path: Path) -> None:
    launcher = start(3, READY + WAIT)
    ranks = pids(tmp_path, 3)
    os.kill(ranks[2], signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert stderr == "error: rank 2 was killed by SIGKILL; the other ranks are stopped\n"
    assert all(is_gone(pid) for pid in ranks)


def test_rank_that_ignores_sigterm_is_killed(start: Start, tmp_path: Path) -> None:
    program = "signal.signal(signal.SIGTERM, lambda *_: Path(f'asked-{rank}').touch())\n"
    launcher = start(2, program + READY + WAIT, kill_after=0.5)
    ranks = pids(tmp_path, 2)
    os.kill(ranks[1], signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert (tmp_path / "asked-0").exists()
    assert is_gone(ranks[0])


def test_processes_that_a_rank_leaves_behind_end_with_it(start: Start, tmp_path: Path) -> None:
    program = """
import subprocess
helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
Path(f'ready-{rank}').write_text(str(helper.pid))
while rank == 0: time.sleep(0.01)
"""
    launcher = start(2, program, terminate_after=300.0)
    helpers = pids(tmp_path, 2)
    until(lambda: is_gone(helpers[1]))
    assert launcher.poll() is None
    assert not is_gone(helpers[0])


def test_last_words_of_a_rank_stand_before_how_it_ended(start: Start) -> None:
    launcher = start(2, "if rank: sys.exit('word\\n' * 20_000 + 'last word')\ntime.sleep(300)")
    _, stderr = launcher.communicate(timeout=60)
    lines = stderr.splitlines()
    assert len(lines) == 20_002
    assert lines[-2:] == ["[rank 1] last word", "error: rank 1 ended with exit status 1; the other ranks are stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_terminals_group_reaches_each_rank_once(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    program = """
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.append(number))
Path(f'ready-{rank}').write_text(str(os.getpid()))
while not heard: time.sleep(0.01)
time.sleep(0.5)
Path(f'heard-{rank}').write_text(str(heard))
"""
    launcher = start(2, program)
    ranks = pids(tmp_path, 2)
    assert [os.getpgid(pid) for pid in ranks] == ranks, "or the terminal would signal them too"
    os.killpg(launcher.pid, number)
    assert launcher.communicate(timeout=60) == ("", "")
    assert launcher.returncode == 0
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == [str([int(number)])] * 2


def test_second_ctrl_c_is_passed_on_too(start: Start, tmp_path: Path) -> None:
    program = """
signal.signal(signal.SIGINT, lambda *_: (signal.signal(signal.SIGINT, signal.SIG_DFL), Path(f'heard-{rank}').touch()))
"""
    launcher = start(2, program + READY + WAIT)
    pids(tmp_path, 2)
    os.killpg(launcher.pid, signal.SIGINT)
    until(lambda: all((tmp_path / f"heard-{rank}").exists() for rank in range(2)))
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGINT


def test_ranks_die_with_a_killed_launcher(start: Start, tmp_path: Path) -> None:
    die = "from bushcraft.parallel.launch import die_with_parent; die_with_parent(os.environ)\n"
    launcher = start(2, die + READY + WAIT)
    ranks = pids(tmp_path, 2)
    launcher.kill()
    until(lambda: all(is_gone(pid) for pid in ranks))


def test_rank_whose_launcher_died_before_it_asked_dies(start: Start, tmp_path: Path) -> None:
    program = "os.environ['BUSHCRAFT_LAUNCHER'] = '1'\nfrom bushcraft.parallel.launch import die_with_parent\n"
    launcher = start(1, program + "die_with_parent(os.environ)\nPath('lives').touch()")
    launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert not (tmp_path / "lives").exists()


def test_ranks_go_on_when_nobody_reads_their_stderr(start: Start) -> None:
    launcher = start(2, "if rank: sys.stderr.write(('word ' * 20 + '\\n') * 5000)")
    assert launcher.stderr
    launcher.stderr.close()
    assert launcher.wait(timeout=60) == 0


def test_command_that_is_not_there_is_told() -> None:
    with pytest.raises(RunError, match="cannot start rank 0: no-such-command: No such file"):
        run_ranks(2, ["no-such-command"], {"PATH": "/nowhere"})


@pytest.mark.slow
def test_ranks_meet_and_reduce(start: Start, tmp_path: Path) -> None:
    program = "x = torch.tensor(10.0 ** rank)\ndist.all_reduce(x)\nPath(str(rank)).write_text(str(x.item()))\nleave()\n"
    launcher = start(2, JOIN + program, terminate_after=30.0)
    _, stderr = launcher.communicate(timeout=120)
    assert (launcher.returncode, stderr) == (0, "")
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["11.0", "11.0"]


@pytest.mark.slow
def test_ranks_that_hang_in_a_collective_are_ended(start: Start, tmp_path: Path) -> None:
    """Ranks 0 and 1 wait for each other, and their handlers of SIGTERM for the collective to return."""
    program = """
signal.signal(signal.SIGTERM, lambda *_: Path(f'heard-{rank}').touch())
Path(f'ready-{rank}').write_text(str(os.getpid()))
if rank == 2: time.sleep(300)
dist.recv(torch.zeros(1), src=1 - rank)
"""
    launcher = start(3, JOIN + program)
    ranks = pids(tmp_path, 3)
    os.kill(ranks[2], signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert stderr == "error: rank 2 was killed by SIGKILL; the other ranks are stopped\n"
    assert all(is_gone(pid) for pid in ranks)


@pytest.mark.slow
def test_rank_that_dies_before_it_joins_is_the_one_named(start: Start) -> None:
    launcher = start(2, "if rank: sys.exit('no data')\n" + JOIN)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert stderr.splitlines() == [
        "[rank 1] no data",
        "error: rank 1 ended with exit status 1; the other ranks are stopped",
    ]
