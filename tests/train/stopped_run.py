"""Run the command line, and send it one SIGINT at the n-th call of a function of ours.

    python stopped_run.py MODULE.FUNCTION N ARGUMENTS…

At the end stderr has one line: how often the function was called after that.
"""

import importlib
import os
import signal
import sys
from typing import Any

from bushcraft.train import heldout


def main() -> None:
    path, stop_at = sys.argv[1], int(sys.argv[2])
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    function, calls = getattr(module, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    setattr(module, name, call)
    heldout.TOKENS_AT_ONCE = 256  # many small batches
    sys.argv[1:] = sys.argv[3:]
    from bushcraft.cli import main as command

    try:
        command()
    finally:
        print(calls - stop_at, file=sys.stderr)


main()
