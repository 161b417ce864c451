"""A room imports only rooms above it; the order is that of DESIGN, and it binds."""

import ast
from pathlib import Path

import pytest

import bushcraft

ROOMS = (
    "errors",
    "store",
    "ledger",
    "model",
    "data",
    "objectives",
    "parallel",
    "checkpoint",
    "alarms",
    "train",
    "fleet",
    "diagnose",
    "supervise",
    "clusters",
    "plan",
    "chaos",
    "dashboard",
    "cli",
)
PACKAGE = Path(bushcraft.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(source: str) -> set[str]:
    """The rooms of ours that a file imports, at its top or inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "bushcraft"
                else {node.module or ""}
            )
    return {name.split(".")[1] for name in names if name.startswith("bushcraft.")} & set(ROOMS)


def test_every_room_has_its_place() -> None:
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert found <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_room_imports_only_rooms_above(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    below = {other for other in imported_rooms(path.read_text()) if ROOMS.index(other) > ROOMS.index(room)}
    assert not below, f"{room} imports {sorted(below)}, which stand below it"


def test_store_and_model_stand_alone() -> None:
    for room in ("store", "model"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert imported_rooms(path.read_text()) <= {room, "errors"}, path


def test_a_forbidden_import_is_found() -> None:
    assert imported_rooms("def f():\n    from bushcraft.train.recipe import Recipe\n") == {"train"}
