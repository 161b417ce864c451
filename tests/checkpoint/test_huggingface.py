"""Hugging Face folders both ways: every bit comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bushcraft.checkpoint import huggingface_safetensors
from bushcraft.checkpoint.huggingface_import import import_folder
from bushcraft.checkpoint.huggingface_read_config import Keys, read_config
from bushcraft.checkpoint.huggingface_write_config import write_config
from bushcraft.checkpoint.newest import verify
from bushcraft.checkpoint.tensors import load_tensor
from bushcraft.checkpoint.weights import PREFIX
from bushcraft.errors import CheckpointError, CorruptObjectError
from bushcraft.model.config import ModelConfig
from bushcraft.store.local import LocalDepot
from tests.checkpoint.huggingface_cases import DECODER, SHAPES, T5GEMMA, config_of, export


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SHAPES[request.param]


def test_what_was_exported_and_imported_is_the_same_model(
    depot: LocalDepot, tmp_path: Path, shape: dict[str, Any]
) -> None:
    before = export(depot, tmp_path / "out", **shape)
    name, after = import_folder(depot, tmp_path / "out", "again")
    assert after.tensors == before.tensors
    assert config_of(after) == ModelConfig(**shape)
    assert after.tokenizer is not None
    assert (after.tokenizer.begin, after.tokenizer.ends) == (0, (0,))
    assert verify(depot, name)[0] == after
    assert depot.latest("checkpoints/again") == name


def test_a_damaged_tokenizer_is_noticed(depot: LocalDepot, tmp_path: Path) -> None:
    export(depot, tmp_path / "out", **DECODER)
    name, manifest = import_folder(depot, tmp_path / "out", "x")
    assert manifest.tokenizer is not None
    depot.path(manifest.tokenizer.object).write_bytes(b"{}")
    with pytest.raises(CorruptObjectError, match=manifest.tokenizer.object):
        verify(depot, name)


def test_shards_hold_what_one_file_holds(
    depot: LocalDepot, tmp_path: Path, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(depot, tmp_path / "one", **shape)
    monkeypatch.setattr(huggingface_safetensors, "SHARD_BYTES", 3000)
    before = export(depot, tmp_path / "many", **shape)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = [load_file(path) for path in sorted((tmp_path / "many").glob("*.safetensors"))]
    assert len(shards) > 2
    merged = {name: tensor for shard in shards for name, tensor in shard.items()}
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert merged.keys() == one.keys() == index["weight_map"].keys()
    assert all(torch.equal(merged[name], one[name]) for name in one)
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in one.values())
    assert import_folder(depot, tmp_path / "many", "again")[1].tensors == before.tensors


def test_bfloat16_is_what_the_weights_round_to(depot: LocalDepot, tmp_path: Path) -> None:
    export(depot, tmp_path / "fp32", **SHAPES["llama"])
    export(depot, tmp_path / "bf16", dtype=torch.bfloat16, **SHAPES["llama"])
    whole, rounded = (load_file(tmp_path / kind / "model.safetensors") for kind in ("fp32", "bf16"))
    assert all(torch.equal(rounded[name], whole[name].bfloat16()) for name in whole)


def test_tensors_stand_where_transformers_looks(depot: LocalDepot, tmp_path: Path) -> None:
    manifest = export(depot, tmp_path / "out", **SHAPES["t5gemma"])
    theirs = load_file(tmp_path / "out" / "model.safetensors")

    def ours(name: str) -> torch.Tensor:
        entry = manifest.tensors[PREFIX + name]
        load_tensor(depot, name, entry, into := torch.empty(entry.shape))
        return into

    for name, their_name in {
        "decoder.layers.1.cross.query.weight": "model.decoder.layers.1.cross_attn.q_proj.weight",
        "encoder.layers.0.attention.out.weight": "model.encoder.layers.0.self_attn.o_proj.weight",
        "encoder.embedding.weight": "model.encoder.embed_tokens.weight",
        "decoder.unembedding.weight": "lm_head.out_proj.weight",
        "decoder.layers.0.mlp.gate.weight": "model.decoder.layers.0.mlp.gate_proj.weight",
    }.items():
        assert torch.equal(theirs[their_name], ours(name)), name
    norm = theirs["model.decoder.layers.0.post_feedforward_layernorm.weight"]
    assert torch.equal(norm, ours("decoder.layers.0.mlp_post_norm.weight") - 1)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    n_heads, width = draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([2, 4, 6]))
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 10**6)),
        "d_model": n_heads * width,
        "n_heads": n_heads,
        "n_kv_heads": draw(st.sampled_from([n for n in range(1, n_heads + 1) if n_heads % n == 0])),
        "head_dim": draw(st.none() | st.sampled_from([8, 10])),
        "d_ff": draw(st.integers(1, 100)),
        "n_layers": draw(st.integers(2, 9)),
        "mlp": draw(st.sampled_from(["swiglu", "geglu"])),
        "tie_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.floats(1, 1e7)),
        "norm_eps": draw(st.floats(1e-9, 1)),
        "qk_norm": draw(st.booleans()),
    }
    kind = draw(st.sampled_from(["decoder", "encoder_decoder"]))
    if kind == "encoder_decoder":
        values |= (
            T5GEMMA
            | values
            | {
                "qk_norm": False,
                "share_embeddings": False,
                "n_encoder_layers": draw(st.none() | st.integers(1, 9).filter(lambda n: n != values["n_layers"])),
                "attention_soft_cap": draw(st.none() | st.floats(0.1, 100)),
                "logit_soft_cap": draw(st.none() | st.floats(0.1, 100)),
                "attention_scale": draw(st.none() | st.integers(11, 1000).map(lambda n: n**-0.5)),
            }
        )
    if values["qk_norm"] or kind == "encoder_decoder":
        window = draw(st.none() | st.integers(1, 5000))
        layers = max(values["n_layers"], values.get("n_encoder_layers") or 0)
        values |= {} if window is None else {"window": window, "full_layer_every": draw(st.integers(2, layers + 1))}
    return ModelConfig(**values)


@given(configs())
@settings(deadline=None)
def test_config_json_says_all_of_a_model(config: ModelConfig) -> None:
    document = json.loads(json.dumps(write_config(config, 77, 3, (4, 5), 6, "float32")))
    found = read_config(Keys(document, "config.json"), Keys({}, "generation_config.json"))
    assert (found.model, found.context, found.begin, found.ends) == (config, 77, 3, (4, 5))


def test_config_of_before_version_5_is_read(depot: LocalDepot, tmp_path: Path) -> None:
    export(depot, tmp_path / "out", **SHAPES["llama"])
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    del document["rope_parameters"], document["head_dim"]
    document |= {"rope_theta": 5e5, "rope_scaling": None, "num_key_value_heads": 1}
    (tmp_path / "out" / "config.json").write_text(json.dumps(document))
    assert config_of(import_folder(depot, tmp_path / "out", "x")[1]).rope_theta == 5e5


def test_a_copy_of_tied_embeddings_and_derived_tensors_are_left_out(depot: LocalDepot, tmp_path: Path) -> None:
    before = export(depot, tmp_path / "out", **DECODER)
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | copy | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, path)
    assert import_folder(depot, tmp_path / "out", "x")[1].tensors == before.tensors
    save_file(tensors | {"lm_head.weight": copy["lm_head.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        import_folder(depot, tmp_path / "out", "x")
