import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bushcraft.store.workspace import Store
from tests.data.chatml import CHATML, ROWS, TOKENIZER


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
        (["mine", "{corpus}", "--longest", "9"], "--longest is about prompts and answers"),
        (["mine", "{corpus}", "--chat-template", "{corpus}"], "--chat-template is about prompts and answers"),
        (["mine", "{corpus}", "--instructions"], "--instructions reads JSON lines"),
        (["mine", "{corpus}", "--instructions", "--column", "body"], "--column is about text"),
        (["mine", "{corpus}", "--instructions", "--chat-template", "{tmp}/none"], "none: No such file"),
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


def test_instructions_are_built_from_a_model_folder_and_looked_at(tmp_path: Path) -> None:
    folder, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(TOKENIZER.json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}))
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    where = ("--store", tmp_path / "s")
    options = ("--instructions", "--chat-template", folder, "--tokenizer", folder, "--longest", 90, *where)
    done = bushcraft("data", "build", "mine", rows, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"the longest has (\d+) tokens; \d+ longer ones were left out", done.stdout)
    assert "--set objective.kind=sft --set run.start_from=RUN --set run.sequence_length=" in done.stdout
    shown = bushcraft("data", "preview", "mine", *where)
    assert "<|im_start|>assistant\nanswer" in shown.stdout
    (about,) = json.loads(bushcraft("data", "inspect", "mine", "--json", *where).stdout)
    assert about["examples"]["target_begin"] == TOKENIZER.vocab_size
    assert bushcraft("data", "verify", "mine", *where).returncode == 0
