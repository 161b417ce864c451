"""Every process of a run kills the trainer and itself at the n-th durable operation that all of them make together.

Durable operations are fsync, rename and the creation of a reference: between any two of them the disk is in
a state that a power cut or a kill can leave behind.
"""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT, WHEN = int(os.environ["KILL_AT"]), os.environ["KILL_WHEN"]


def operations_so_far() -> int:
    """One more than before, over all processes."""
    with Path(os.environ["KILL_COUNTER"]).open("ab") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.write(b".")
        counter.flush()
        return counter.tell()


def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        is_last = operations_so_far() == AT
        if is_last and WHEN == "before":
            die()
        result = function(*args, **kwargs)
        if is_last:
            die()
        return result

    return call


def die() -> None:
    os.kill(int(os.environ["KILL_TRAINER"]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


os.fsync = deadly(os.fsync)
Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
Path.touch = deadly(Path.touch)  # type: ignore[method-assign]
