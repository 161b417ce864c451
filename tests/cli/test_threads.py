"""Threads that wait give way to other processes, unless the user has said how they shall wait."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, os
import bushcraft.cli
assert "torch" not in sys.modules, "OpenMP reads its settings when torch is imported"
try:
    bushcraft.cli.main()
except SystemExit:
    print({name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")})
"""


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000", "OMP_WAIT_POLICY": None}),
        ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": None}),
    ],
)
def test_waiting_threads_sleep_unless_told_otherwise(said: dict[str, str], found: dict[str, str | None]) -> None:
    line = [sys.executable, "-c", PROGRAM, "--version"]
    done = subprocess.run(line, env={"PATH": "/usr/bin", **said}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(found)
