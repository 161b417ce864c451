"""bushcraft checkpoint export and import: what goes out and comes in again speaks as before."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bushcraft.checkpoint.huggingface_export import export_folder
from bushcraft.checkpoint.huggingface_import import import_folder
from bushcraft.checkpoint.manifest import read_manifest
from bushcraft.checkpoint.manifest import write_manifest as write_checkpoint
from bushcraft.cli import main
from bushcraft.data.manifest import ExampleFormat, write_manifest
from bushcraft.store.local import LocalDepot
from bushcraft.store.workspace import Store
from bushcraft.train.load_model import find_model, load_model, text_side
from tests.checkpoint.huggingface_cases import DECODER, SHAPES, T5GEMMA, change, export, run_of


def command(monkeypatch: pytest.MonkeyPatch, store: Store, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["bushcraft", *words, "--store", str(store.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_run_is_exported_and_speaks_as_before_when_it_is_imported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run_of(store, DECODER)
    assert command(monkeypatch, store, "checkpoint", "export", "trained", str(tmp_path / "out")) == 0
    assert command(monkeypatch, store, "checkpoint", "import", str(tmp_path / "out"), "again") == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    again = find_model(store, "again")
    assert again.manifest.tensors == trained.tensors
    assert again.dataset.fingerprint == find_model(store, "trained").dataset.fingerprint
    assert again.recipe.run.sequence_length == 48
    spoken = ["".join(load_model(store, name)[0].continuation("a t", 9, 0, 1, 0)) for name in ("trained", "again")]
    assert spoken[0] == spoken[1] != ""
    assert command(monkeypatch, store, "checkpoint", "verify") == 0


def test_an_encoder_decoder_comes_with_sentinels_and_padding(store: Store, tmp_path: Path) -> None:
    run_of(store, T5GEMMA, kind="span_corruption", n_sentinels=10)
    saved = find_model(store, "trained")
    text = text_side(store, saved)
    export_folder(store.depot, saved.manifest, saved.recipe.model, text, 48, tmp_path / "out", torch.float32)
    engine = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    first = saved.dataset.vocab_size
    assert [engine.token_to_id(f"<extra_id_{n}>") for n in range(10)] == list(range(first, first + 10))
    assert engine.encode("a<extra_id_3>").ids == [0, *engine.encode("a").ids[1:], first + 3]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == engine.token_to_id("<pad>") == first + 10
    import_folder(store.depot, tmp_path / "out", "again")
    assert "".join(load_model(store, "again")[0].continuation("a t", 9, 0, 1, 0)) != ""


def test_the_chat_template_of_the_data_goes_along(store: Store) -> None:
    manifest = run_of(store, DECODER)
    template = store.depot.put_bytes(b'{"chat_template": "{{ messages }}", "bos_token": null, "eos_token": null}')
    dataset = find_model(store, "trained").dataset
    examples = dataclasses.replace(dataset, examples=ExampleFormat(270, 271, 9, "a", template))
    trained = dataclasses.replace(manifest, datasets={"d": write_manifest(store.depot, examples)})
    write_checkpoint(store.depot, trained)
    assert text_side(store, find_model(store, "trained")).chat_template == "{{ messages }}"


def test_tokens_of_a_text_that_begin_and_end_it_are_kept_apart(depot: LocalDepot, tmp_path: Path) -> None:
    export(depot, tmp_path / "out", **SHAPES["llama"])
    (tmp_path / "out" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    change(tmp_path / "out" / "config.json", bos_token_id=5, eos_token_id=7)
    change(tmp_path / "out" / "tokenizer_config.json", chat_template="{{ messages }}")
    entry = import_folder(depot, tmp_path / "out", "x")[1].tokenizer
    assert entry is not None
    assert (entry.begin, entry.ends, entry.chat_template) == (5, (7, 9), "{{ messages }}")
    assert read_manifest(depot, depot.latest("checkpoints/x") or "").tokenizer == entry


def test_prompts_that_were_read_both_ways_are_noted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(store, DECODER, kind="prefix")
    assert command(monkeypatch, store, "checkpoint", "export", "trained", str(tmp_path / "out"), "--json") == 0
    assert "read prompts both ways" in json.loads(capsys.readouterr().out)["notes"][0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "nobody", "out"], "run 'nobody' has no checkpoint"),
        (["import", "nowhere", "x"], "nowhere has no config.json"),
    ],
)
def test_what_is_not_there_ends_in_one_line(
    words: list[str], told: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, store, "checkpoint", *words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
