"""A store that another process serves through FUSE."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.outside.mount import check_mount_point

SERVE = """
import sys
from pathlib import Path
from bushcraft.store.outside.mount import mount
from bushcraft.store.outside.tree import tree
from bushcraft.store.workspace import Store

top = tree(Store.open(Path(sys.argv[1])).depot)
mount(top, Path(sys.argv[2]), lambda line: print(line, file=sys.stderr, flush=True))
"""


def why_not() -> str:
    """Why nothing can be mounted here, if so."""
    try:
        check_mount_point(Path("/proc/self"))
    except StoreError as error:
        return "" if "not empty" in error.message else str(error)
    return ""


needs_fuse = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Mounted:
    """A process that serves a store."""

    def __init__(self, store: Path, where: Path) -> None:
        self.where = where
        where.mkdir()
        command = [sys.executable, "-c", SERVE, str(store), str(where)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not os.path.ismount(where):
            assert self.process.poll() is None, self.process.communicate()[1]

    def end(self, by: signal.Signals) -> str:
        """What it logged."""
        self.process.send_signal(by)
        return self.process.communicate(timeout=20)[1]
