"""A folder or a model that does not fit is refused in one line, by the name of what is wrong; nothing is left."""

import errno
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bushcraft.checkpoint.huggingface_export import export_folder
from bushcraft.checkpoint.huggingface_import import import_folder
from bushcraft.checkpoint.huggingface_tokenizer import TextSide
from bushcraft.errors import CheckpointError, CorruptObjectError
from bushcraft.store.local import LocalDepot
from bushcraft.store.workspace import Store
from tests.checkpoint.huggingface_cases import DECODER, SHAPES, T5GEMMA, change, export, run_of, save, tokenizer

REFUSED_CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("llama", {"architectures": ["MambaForCausalLM"]}, r'architectures = ["MambaForCausalLM"]'),
    "rope scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        'rope_parameters.rope_type = "llama3"',
    ),
    "bias": ("qwen3", {"attention_bias": True}, "attention_bias = true"),
    "mlp bias": ("llama", {"mlp_bias": True}, "mlp_bias = true"),
    "activation": ("llama", {"hidden_act": "relu"}, 'hidden_act = "relu"'),
    "widths": (
        "t5gemma",
        {"encoder__hidden_size": 16, "encoder__head_dim": 4},
        "encoder.hidden_size = 16: the decoder has 8",
    ),
    "caps": ("t5gemma", {"encoder__attn_logit_softcapping": 3}, "encoder.attn_logit_softcapping = 3"),
    "pattern": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        'layer_types = ["full_attention", "sliding_attention"]',
    ),
    "windows": ("t5gemma", {"encoder__sliding_window": 9}, "encoder.sliding_window = 9: the decoder has 3"),
    "text for a number": ("llama", {"hidden_size": "8"}, 'hidden_size = "8": not a whole number'),
    "no layers": ("llama", {"num_hidden_layers": None}, "config.json has no num_hidden_layers"),
    "heads": ("llama", {"num_key_value_heads": 3}, "does not divide"),
    "no end": ("llama", {"eos_token_id": None}, "has no eos_token_id"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_what_no_model_section_can_say_is_refused_by_key_and_value(
    depot: LocalDepot, tmp_path: Path, case: str
) -> None:
    shape, values, told = REFUSED_CONFIGS[case]
    export(depot, tmp_path / "out", **SHAPES[shape])
    (tmp_path / "out" / "generation_config.json").unlink()
    change(tmp_path / "out" / "config.json", **values)
    with pytest.raises(CheckpointError) as refused:
        import_folder(depot, tmp_path / "out", "x")
    assert told in str(refused.value)
    assert str(tmp_path / "out" / "config.json") in str(refused.value)
    assert depot.latest("checkpoints/x") is None


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def _index_without_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


QUERY = "model.layers.1.self_attn.q_proj.weight"
BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (_without("config.json"), "has no config.json"),
    "config is not JSON": (_write("config.json", "{"), "config.json is not valid JSON"),
    "config is a list": (_write("config.json", "[]"), "config.json is not a JSON object"),
    "no tokenizer": (_without("tokenizer.json"), "has no tokenizer.json"),
    "tokenizer is none": (_write("tokenizer.json", "{}"), "tokenizer.json is not a tokenizer.json"),
    "no weights": (_without("model.safetensors"), "has neither model.safetensors nor model.safetensors.index.json"),
    "missing tensor": (_tensors(lambda t: t.pop(QUERY)), f"misses the tensor {QUERY}"),
    "extra tensor": (_tensors(lambda t: t.update(x=torch.ones(1))), "also has the tensor x"),
    "shape": (
        _tensors(lambda t: t.update({QUERY: torch.ones(8, 9)})),
        f"tensor {QUERY} is [8, 9], config.json wants [8, 8]",
    ),
    "dtype": (_tensors(lambda t: t.update({QUERY: torch.ones(8, 8, dtype=torch.int8)})), f"tensor {QUERY} is I8"),
    "truncated": (_truncate, "model.safetensors is not a whole safetensors file"),
    "missing shard": (_index_without_shard, "index.json lists model-00002-of-00002.safetensors, which is not there"),
}


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_a_folder_that_does_not_fit_is_refused_by_the_name_of_what_is_wrong(
    depot: LocalDepot, tmp_path: Path, case: str
) -> None:
    spoil, told = BROKEN_FOLDERS[case]
    export(depot, tmp_path / "out", **SHAPES["llama"])
    spoil(tmp_path / "out")
    with pytest.raises(CheckpointError) as refused:
        import_folder(depot, tmp_path / "out", "x")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert depot.latest("checkpoints/x") is None


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_refused(depot: LocalDepot, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "out"
    if not folder.exists():
        export(depot, folder, **SHAPES["llama"])
        (tmp_path / "whole").write_bytes((folder / "model.safetensors").read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    end = data.draw(st.sampled_from([0, 1, 8, 8 + header]) | st.integers(0, len(whole) - 1))
    (folder / "model.safetensors").write_bytes(whole[:end])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        import_folder(depot, folder, "x")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(depot: LocalDepot, tmp_path: Path) -> None:
    export(depot, tmp_path / "out", **(SHAPES["llama"] | {"vocab_size": 200}))
    with pytest.raises(CheckpointError, match=r"has the token \d+, config.json has vocab_size = 200"):
        import_folder(depot, tmp_path / "out", "x")


def test_a_run_that_was_trained_is_not_imported_over(store: Store, tmp_path: Path) -> None:
    run_of(store, DECODER)
    export(store.depot, tmp_path / "out", **SHAPES["llama"])
    with pytest.raises(CheckpointError, match="'trained' is a run that was trained here"):
        import_folder(store.depot, tmp_path / "out", "trained")
    with pytest.raises(CheckpointError, match="cannot be a name"):
        import_folder(store.depot, tmp_path / "out", "a/b")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (DECODER | {"mlp": "relu2"}, "model.mlp = relu2 of this decoder has no place in Qwen3ForCausalLM"),
        (DECODER | {"post_norm": True}, "model.post_norm = true of this decoder"),
        (DECODER | {"scale_embeddings": True}, "model.scale_embeddings = true"),
        (DECODER | {"attention_soft_cap": 5.0}, "model.attention_soft_cap = 5.0"),
        (DECODER | {"logit_soft_cap": 5.0}, "model.logit_soft_cap = 5.0"),
        (DECODER | {"attention_scale": 0.3}, "model.attention_scale = 0.3"),
        (
            DECODER | {"qk_norm": False, "window": 3},
            "model.window = 3 of this decoder has no place in LlamaForCausalLM",
        ),
        (DECODER | {"qk_norm": False, "n_heads": 3, "head_dim": 4}, "model.n_heads = 3"),
        (DECODER | {"kind": "encoder_decoder"}, "model.scale_embeddings = false of this encoder-decoder"),
        (T5GEMMA | {"qk_norm": True}, "model.qk_norm = true of this encoder-decoder has no place in T5Gemma"),
        (T5GEMMA | {"post_norm": False}, "model.post_norm = false"),
        (T5GEMMA | {"attention_scale": 0.3}, "model.attention_scale = 0.3"),
    ],
)
def test_what_no_architecture_can_say_is_refused_by_its_key(
    depot: LocalDepot, tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(CheckpointError) as refused:
        export(depot, tmp_path / "out", **values)
    assert told in str(refused.value)
    assert list(tmp_path.glob("*out*")) == []


def test_a_folder_that_holds_something_stays_as_it_is(depot: LocalDepot, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, told in (("out", "out is not empty"), ("file", "file is a file"), ("file/below", "cannot write")):
        with pytest.raises(CheckpointError, match=told):
            export(depot, tmp_path / name, **DECODER)
    (tmp_path / "out" / "mine").unlink()
    export(depot, tmp_path / "out", **DECODER)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    depot: LocalDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if len(data) == 4 * DECODER["d_model"] * DECODER["d_model"]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

    opened = Path.open

    def open_(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        full = path.name == "model.safetensors" and mode == "wb"
        return Full() if full else opened(path, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        export(depot, tmp_path / "out", **DECODER)
    assert list(tmp_path.glob("*out*")) == []


def test_a_damaged_checkpoint_is_not_exported(depot: LocalDepot, tmp_path: Path) -> None:
    manifest, config = save(depot, **DECODER)
    chunk = manifest.tensors["model/embedding.weight"].chunks[0]
    path = depot.path(chunk.object)
    data = bytearray(path.read_bytes())
    data[chunk.begin] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObjectError, match=r"tensor embedding\.weight"):
        export_folder(depot, manifest, config, TextSide(tokenizer(), 0, (0,)), 64, tmp_path / "out", torch.float32)
    assert list(tmp_path.glob("*out*")) == []
