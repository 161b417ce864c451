import json
import subprocess
import sys
from pathlib import Path

import pytest

from bushcraft.store.workspace import Store


def bushcraft(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bushcraft.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"This is text number {i}, and here is {i * i}.\n" * (i + 3))
    return folder


def test_a_build_prints_its_numbers_and_the_next_command(tmp_path: Path, corpus: Path) -> None:
    done = bushcraft("data", "build", "mine", corpus, "--store", tmp_path / "s", "--vocab-size", 300, "--workers", 1)
    assert done.returncode == 0, done.stderr
    for part in ("mine: built", "train", "held-out", "bytes/token", "xz -9e", "next: bushcraft train"):
        assert part in done.stdout
    again = bushcraft("data", "build", "mine", corpus, "--store", tmp_path / "s", "--vocab-size", 300, "--json")
    result = json.loads(again.stdout)
    assert result["unchanged"] is True
    assert result["manifest"] == Store.open(tmp_path / "s").depot.latest("datasets/mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine", "{tmp}/none"], "does not exist"),
        (["mine"], "nothing to read"),
        (["mine", "{corpus}", "--python"], "--python takes no other input"),
        (["mine", "{corpus}", "--heldout", "0.9"], "--heldout 0.9 is no share"),
        (["mine", "{corpus}", "--vocab-size", "100"], "--vocab-size 100 has no room"),
        (["mine", "{corpus}", "--tokenizer", "{tmp}/none.json"], "none.json: No such file"),
        (["mine", "{corpus}", "--tokenizer", "{corpus}/1.txt"], "is not a tokenizer.json"),
        (["my name", "{corpus}"], "cannot be a name"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, corpus: Path, arguments: list[str], message: str
) -> None:
    filled = [a.format(tmp=tmp_path, corpus=corpus) for a in arguments]
    done = bushcraft("data", "build", *filled, "--store", tmp_path / "s")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
