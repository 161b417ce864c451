"""Run the command line, and kill it with SIGKILL at its n-th durable operation.

    python killed_run.py N before|after ARGUMENTS…

Durable operations are fsync, rename and the creation of a reference: between any two of them the disk is in
a state that a power cut or a kill can leave behind.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    countdown, when = [int(sys.argv[1])], sys.argv[2]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            countdown[0] -= 1
            if countdown[0] == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if countdown[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync = deadly(os.fsync)
    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
    Path.touch = deadly(Path.touch)  # type: ignore[method-assign]
    sys.argv[1:] = sys.argv[3:]
    from bushcraft.cli import main as command

    command()


main()
