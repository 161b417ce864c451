"""bushcraft checkpoint list, show, diff and verify: what is there, where it lies, and how two differ."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bushcraft.checkpoint.manifest import CheckpointManifest, write_manifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.cli import main
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import DepotSettings, GcSettings, StoreSettings, write_settings
from bushcraft.store.workspace import Store


@pytest.fixture
def two(tmp_path: Path) -> Depots:
    """A store of two depots with three checkpoints of the run r."""
    store = Store.create(tmp_path / "store")
    there = DepotSettings(name="there", url=str(tmp_path / "there"), provider="elsewhere")
    LocalDepot.create(tmp_path / "there", "there")
    write_settings(store.root, StoreSettings(copies=2, depots=(DepotSettings(name="local", url="depot"), there)))
    depot = Store.open(store.root).depot
    assert isinstance(depot, Depots)
    weights = torch.arange(8.0)
    for number in (1, 2, 3):
        save(
            depot, number, {"model/a": weights + (number == 3), "model/b": torch.ones(2), "optimizer/m": torch.zeros(4)}
        )
    return depot


def save(depot: Depots, number: int, tensors: dict[str, Tensor]) -> str:
    entries = {}
    for name, tensor in tensors.items():
        entries |= save_tensors(depot, {name: tensor})
    ledger, code = depot.put_bytes(b"ledger"), depot.put_bytes(b"code")
    manifest = CheckpointManifest("r", 8 * number, number, "0" * 64, ledger, {"x": 1}, {}, code, {}, entries)
    return write_manifest(depot, manifest)


@pytest.fixture
def command(
    two: Depots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Command":
    assert two.members
    return Command(tmp_path / "store", monkeypatch, capsys)


class Command:
    """Runs `bushcraft checkpoint`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._root, self._monkeypatch, self._capsys = root, monkeypatch, capsys

    def __call__(self, *words: str, code: int = 0) -> str:
        self._monkeypatch.setattr("sys.argv", ["bushcraft", "checkpoint", *words, "--store", str(self._root)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = self._capsys.readouterr()
        assert ended.value.code == code, told.err
        return told.out or told.err

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


def test_list_tells_in_which_depots_a_checkpoint_is_whole(two: Depots, command: Command) -> None:
    newest = two.history("checkpoints/r")[0][1]
    two.members[1].remove_object(newest)
    assert [c["durable_in"] for c in command.json("list")] == [["local"], ["local", "there"], ["local", "there"]]
    assert "durable in" in command("list")


def test_show_tells_what_is_in_a_checkpoint_and_where(two: Depots, command: Command) -> None:
    shown = command.json("show", "r@2")
    assert (shown["run"], shown["position"], shown["step"], shown["bytes"]) == ("r", 16, 2, 56)
    assert shown["manifest"] == two.history("checkpoints/r")[1][1]
    assert shown["shared_with_the_one_before"] == 1.0
    assert [(g["name"], g["tensors"], g["elements"]) for g in shown["tensors"]] == [
        ("model", 2, 10),
        ("optimizer", 1, 4),
    ]
    assert all(found["depots"] == ["local", "there"] for found in shown["objects"])
    newest = command.json("show", "r")
    assert newest["shared_with_the_one_before"] == pytest.approx(24 / 56)
    assert newest["recipe"] == shown["recipe"]
    assert "durable in" in command("show", "r")


def test_diff_names_the_tensors_that_differ_and_by_how_much(command: Command) -> None:
    assert command("diff", "r@1", "r@2") == "all 3 tensors are equal, bit for bit\n"
    (found,) = command.json("diff", "r@1", "r", code=1)
    assert (found["name"], found["max_abs"]) == ("model/a", 1.0)
    assert found["relative_norm"] == pytest.approx(math.sqrt(8 / 140))


def test_diff_tells_why_tensors_cannot_be_compared(two: Depots, command: Command) -> None:
    save(two, 4, {"model/a": torch.arange(8), "model/c": torch.ones(2), "optimizer/m": torch.full((4,), torch.nan)})
    found = {d["name"]: d for d in command.json("diff", "r@1", "r@4", code=1)}
    assert found["model/a"]["why"] == "float32[8] and int64[8]"
    assert (found["model/b"]["why"], found["model/c"]["why"]) == ("only in the first", "only in the second")
    assert math.isnan(found["optimizer/m"]["max_abs"])


def test_verify_reads_the_copies_of_all_depots_when_it_is_asked_to(two: Depots, command: Command) -> None:
    there = two.members[1]
    assert isinstance(there, LocalDepot)
    there.path(two.put_bytes(b"code")).write_bytes(b"cold")
    assert [c["error"] for c in command.json("verify", "r@3")] == [None]
    local, other = command.json("verify", "r@3", "--all-depots", code=1)
    assert (local["depot"], local["error"], other["depot"]) == ("local", None, "there")
    assert "corrupted" in other["error"]


@pytest.mark.parametrize(
    ("name", "told"),
    [("r@9", "run 'r' has no checkpoint '9'. It has 1 to 3"), ("q", "run 'q' has no checkpoints. Runs that have: r")],
)
def test_an_unknown_checkpoint_is_one_line(command: Command, name: str, told: str) -> None:
    assert command("show", name, code=2) == f"error: {told}\n"


def test_retire_lets_go_of_what_the_policy_does_not_want_and_of_nothing_else(two: Depots, command: Command) -> None:
    for number in (4, 5, 6):
        save(two, number, {"model/a": torch.full((8,), float(number))})
    two.background.wait()
    assert "gc is off" in command("retire", "r", code=2)
    settings = two.settings.model_copy(update={"gc": GcSettings(enabled=True)})
    write_settings(Path(str(two.members[0])).parent, settings)
    planned = command.json("retire", "r", "--milestone", "1", "--keep-every", "24", "--dry-run")
    assert (planned["kept"], planned["gone"]) == ([6, 5, 3, 1], [4, 2])
    assert [number for number, _ in two.history("checkpoints/r")] == [6, 5, 4, 3, 2, 1]
    assert command.json("retire", "r", "--milestone", "1", "--keep-every", "24")["gone"] == [4, 2]
    assert [number for number, _ in two.history("checkpoints/r")] == [6, 5, 3, 1]
    assert "has no checkpoints" in command("retire", "unknown", code=2)


def test_retire_keeps_two_that_are_verified_whatever_the_policy_says(two: Depots, command: Command) -> None:
    settings = two.settings.model_copy(update={"gc": GcSettings(enabled=True)})
    write_settings(Path(str(two.members[0])).parent, settings)
    newest = two.history("checkpoints/r")[0][1]
    for member in two.members:
        member.remove_object(newest)
    assert command.json("retire", "r")["kept"] == [3, 2, 1]
