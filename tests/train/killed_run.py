"""Run the command line, and kill it with SIGKILL at the n-th durable operation of it and of the process that saves.

python killed_run.py N before|after ARGUMENTS…
"""

import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    _, counter = tempfile.mkstemp(prefix="operations-")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).with_name("killed")),
        "KILL_AT": sys.argv[1],
        "KILL_WHEN": sys.argv[2],
        "KILL_COUNTER": counter,
        "KILL_TRAINER": str(os.getpid()),
    }
    os.execve(sys.executable, [sys.executable, "-m", "bushcraft.cli", *sys.argv[3:]], environment)


main()
