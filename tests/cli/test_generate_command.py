"""`bushcraft generate`: one text or many, and one clear line for what cannot be."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bushcraft.checkpoint.manifest import read_manifest, write_manifest
from bushcraft.cli import main
from bushcraft.errors import BushcraftError
from bushcraft.store.workspace import Store
from tests.train.saved_model import save_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of `bushcraft generate`."""

    def generate(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bushcraft", "generate", *arguments, "--store", str(store.root)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return generate


def test_a_single_text_comes_with_its_prompt(store: Store, run: Run) -> None:
    checkpoint = save_model(store, "m")
    code, out, _ = run("m", "--prompt", "def ", "--tokens", "9")
    assert code == 0
    assert out.startswith("def ")
    found = json.loads(run("m", "--prompt", "def ", "--tokens", "9", "--json")[1])
    assert found == {"checkpoint": checkpoint, "texts": [{"prompt": "def ", "text": out[4:-1]}]}
    assert json.loads(run(checkpoint, "--prompt", "def ", "--tokens", "9", "--json")[1]) == found


def test_without_tokens_a_text_fills_the_context_at_most(store: Store, run: Run) -> None:
    save_model(store, "m")  # whose context of 64 tokens is less than the default
    assert run("m", "--prompt", "x" * 60)[0] == 0


def test_prompts_come_from_options_and_files_in_their_order(store: Store, run: Run, tmp_path: Path) -> None:
    save_model(store, "m")
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("two\u2028 2\n\n{three}\r\n")
    lines.write_text('"two\\n2"\n{"prompt": "three", "id": 3}\n')
    told = json.loads(run("m", "--prompt", "one", "--prompt-file", str(plain), "--tokens", "3", "--json")[1])
    assert [text["prompt"] for text in told["texts"]] == ["one", "two\u2028 2", "{three}"]
    told = json.loads(run("m", "--prompt-file", str(lines), "--tokens", "3", "--json")[1])
    assert [text["prompt"] for text in told["texts"]] == ["two\n2", "three"]
    out = run("m", "--prompt", "a", "--prompt", "b", "--tokens", "3")[1]
    alone = run("m", "--prompt", "b", "--seed", "1", "--tokens", "3")[1]
    assert out.startswith("── 1 of 2 ──\na")
    assert out.endswith(f"── 2 of 2 ──\n{alone}")


def test_a_denoiser_fills_gaps_below_its_prompt(store: Store, run: Run) -> None:
    save_model(store, "m", "objective.kind=ul2", "model.kind=encoder_decoder")
    code, out, _ = run("m", "--prompt", "import <extra_id_0>\nclass", "--tokens", "4")
    assert code == 0
    assert out.startswith("import <extra_id_0>\nclass\n")


def test_help_says_how_gaps_and_modes_are_written(run: Run) -> None:
    told = run("--help")[1]
    assert "<extra_id_0>" in told
    assert "S2S" in told


def lose_a_tensor(store: Store) -> None:
    manifest = read_manifest(store.depot, save_model(store, "m"))
    del manifest.tensors["model/layers.0.mlp.up.weight"]
    write_manifest(store.depot, manifest)


def gain_a_tensor(store: Store) -> None:
    manifest = read_manifest(store.depot, save_model(store, "m"))
    manifest.tensors["model/layers.9.mlp.up.weight"] = manifest.tensors["model/layers.0.mlp.up.weight"]
    write_manifest(store.depot, manifest)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nobody"], "'nobody'"),
        (["m", "--top-p", "0"], "--top-p 0 leaves no token"),
        (["m", "--prompt", "x" * 90], "has 91 tokens, and the model was trained on texts of 64"),
        (["m", "--prompt", "x" * 50, "--tokens", "20"], "has 51 tokens; with 20 more it is longer than the 64 tokens"),
        (["m", "--prompt", "ok", "--prompt", "<extra_id_0>"], "'<extra_id_0>' has <extra_id_0>, but the model was"),
        (["m", "--prompt-file", "{}/absent"], "cannot read the prompts of {}/absent: No such file"),
        (["m", "--prompt-file", "{}/empty"], "there is no prompt in {}/empty"),
        (["m", "--prompt-file", "{}/latin"], "latin: not UTF-8 at byte 1"),
        (["m", "--prompt-file", "{}/bad.jsonl"], "bad.jsonl, line 2 is no prompt"),
        (["m", "--prompt-file", "{}"], "cannot read the prompts of {}: Is a directory"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_in_one_line(
    arguments: list[str], told: str, store: Store, run: Run, tmp_path: Path
) -> None:
    save_model(store, "m")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "latin").write_bytes(b"a\xe4")
    (tmp_path / "bad.jsonl").write_text('"good"\n{"text": "no prompt"}\n')
    code, out, err = run(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert (code, out) == (2, "")
    assert told.replace("{}", str(tmp_path)) in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lose_a_tensor, "misses the tensor layers.0.mlp.up.weight"),
        (gain_a_tensor, "also has the tensor layers.9.mlp.up.weight"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_by_the_tensor(
    change: Callable[[Store], None], told: str, store: Store, run: Run
) -> None:
    change(store)
    code, _, err = run("m")
    assert code == BushcraftError.exit_code
    assert told in err
    assert err.count("\n") == 1
