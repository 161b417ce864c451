"""Models of `transformers` and ours give the same logits and the same greedy tokens, whichever was first.

Shapes: B rows, S positions, V vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import Tensor

from bushcraft.checkpoint.huggingface_export import export_folder
from bushcraft.checkpoint.huggingface_import import import_folder
from bushcraft.checkpoint.huggingface_tokenizer import TextSide
from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import load_weights, model_tensors
from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.generate import generate
from bushcraft.model.packed import Packed
from bushcraft.model.transformer import Decoder, Model, build_model
from bushcraft.store.local import LocalDepot

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
transformers.utils.logging.disable_progress_bar()

pytestmark = pytest.mark.slow
VOCABULARY, N_TOKENS, PAD = 300, 32, 299
LENGTHS = (1, 7, 37, 64)
"""Of prompts: one token, odd, longer and shorter than windows."""
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": PAD,
}


def t5gemma(encoder_layers: int, decoder_layers: int, tie: bool, **change: Any) -> Any:
    encoder, decoder = (
        transformers.T5GemmaModuleConfig(num_hidden_layers=n, **(COMMON | {"head_dim": 16} | change))
        for n in (encoder_layers, decoder_layers)
    )
    return transformers.T5GemmaConfig(encoder=encoder, decoder=decoder, tie_word_embeddings=tie, vocab_size=VOCABULARY)


THEIRS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(num_hidden_layers=2, **COMMON),
    "llama, every head its own keys, tied, another theta": lambda: transformers.LlamaConfig(
        num_hidden_layers=3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        **(COMMON | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    ),
    "llama, heads wider than the width, one key head, geglu": lambda: transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_act="gelu_pytorch_tanh",
        **(COMMON | {"num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 77}),
    ),
    "qwen3": lambda: transformers.Qwen3Config(num_hidden_layers=2, head_dim=24, **COMMON),
    "qwen3, tied, windows": lambda: transformers.Qwen3Config(
        num_hidden_layers=4,
        head_dim=12,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        **COMMON,
    ),
    "t5gemma": lambda: t5gemma(2, 3, tie=True, sliding_window=5, query_pre_attn_scalar=24),
    "t5gemma, untied, low caps, windows of two": lambda: t5gemma(
        3, 2, tie=False, sliding_window=2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "t5gemma, no caps, windows everywhere, silu": lambda: t5gemma(
        1,
        1,
        tie=True,
        sliding_window=9,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        hidden_activation="silu",
        query_pre_attn_scalar=16,
    ),
    "t5gemma, no windows, every head its own keys": lambda: t5gemma(
        2, 2, tie=True, layer_types=["full_attention"] * 2, num_key_value_heads=4
    ),
}
DECODER = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 80}
GEMMA_LIKE = DECODER | {
    "kind": "encoder_decoder",
    "qk_norm": False,
    "post_norm": True,
    "scale_embeddings": True,
    "n_encoder_layers": 2,
    "mlp": "geglu",
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "no qk norm": ("LlamaForCausalLM", DECODER | {"qk_norm": False, "tie_embeddings": False}),
    "as it is by default": ("Qwen3ForCausalLM", DECODER),
    "windows, wide heads": ("Qwen3ForCausalLM", DECODER | {"window": 6, "full_layer_every": 3, "head_dim": 20}),
    "geglu": ("Qwen3ForCausalLM", DECODER | {"mlp": "geglu", "rope_theta": 77_777.0, "norm_eps": 1e-4}),
    "like t5gemma": ("T5GemmaForConditionalGeneration", GEMMA_LIKE),
    "like t5gemma, with everything": (
        "T5GemmaForConditionalGeneration",
        GEMMA_LIKE
        | {
            "window": 4,
            "full_layer_every": 2,
            "attention_soft_cap": 3.0,
            "logit_soft_cap": 4.0,
            "attention_scale": 20**-0.5,
            "tie_embeddings": False,
            "share_embeddings": False,
        },
    ),
}


def tokenizer() -> bytes:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(tokenizer_models.BPE({t: i for i, t in enumerate(["<|endoftext|>", *alphabet])}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|endoftext|>"])
    return engine.to_str().encode()


def randomise(model: torch.nn.Module, seed: int, zero_centred_norms: bool) -> None:
    """Weights with which logits are of order 1, and no norm is the identity.

    The last norm turns some signs around, or tied embeddings would say what they read over and over.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_last = name.split(".")[-2] == "norm"
                multiplier = values if is_last else 1 + 0.2 * values
                parameter.copy_(multiplier - 1 if zero_centred_norms else multiplier)
            else:
                parameter.copy_(values * (0.15 if "embed" in name or "lm_head" in name else 0.12))


def segments(lengths: list[int]) -> Segments:
    """Of one row."""
    length = torch.tensor(lengths, dtype=torch.int32)
    zeros = torch.zeros_like(length)
    return Segments(row=zeros, start=(length.cumsum(0) - length).int(), prefix_length=zeros, length=length)


def our_logits(model: Model, prompts: list[list[int]], beginnings: list[list[int]]) -> list[Tensor]:
    """(S, V) of each prompt, all packed in one row; of an encoder-decoder for what its decoder begins with."""
    read = [torch.tensor([[t for prompt in side for t in prompt]]) for side in (prompts, beginnings)]
    places = [segments([len(prompt) for prompt in side]) for side in (prompts, beginnings)]
    with torch.inference_mode():
        if isinstance(model, Decoder):
            hidden, lengths = model(read[0], places[0]), places[0].length
        else:
            hidden, lengths = model(read[1], places[1], Packed(read[0], places[0])), places[1].length
        logits = hidden[0] @ model.unembedding_VD.T
    cap = model.config.logit_soft_cap
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return list(logits.split(lengths.tolist()))


def their_logits(model: Any, prompts: list[list[int]], beginnings: list[list[int]]) -> list[Tensor]:
    """The same, one prompt at a time."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            pairs = zip(prompts, beginnings, strict=True)
            return [model(input_ids=torch.tensor([p]), decoder_input_ids=torch.tensor([b])).logits[0] for p, b in pairs]
        return [model(torch.tensor([prompt])).logits[0] for prompt in prompts]


def their_tokens(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy, in one padded batch."""
    width, both = max(map(len, prompts)), model.config.is_encoder_decoder
    padded = [[*p, *[PAD] * (width - len(p))] if both else [*[PAD] * (width - len(p)), *p] for p in prompts]
    ids = torch.tensor(padded)
    made = model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        max_new_tokens=N_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
        **({"decoder_start_token_id": 0} if both else {}),
    )
    return made[:, -N_TOKENS:].tolist()


def our_tokens(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    steps = generate(model, prompts, N_TOKENS, 0.0, 1.0, [0] * len(prompts), start=0)
    return [list(row) for row in zip(*steps, strict=True)]


def random_texts(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, PAD, (n,), generator=generator).tolist() for n in lengths]


def assert_same(theirs: Any, ours: Model) -> None:
    theirs.set_attn_implementation("eager")
    theirs.eval()
    prompts, beginnings = random_texts(1, LENGTHS), random_texts(2, tuple(reversed(LENGTHS)))
    wanted, found = their_logits(theirs, prompts, beginnings), our_logits(ours, prompts, beginnings)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert 0.3 < torch.cat(wanted).std() < 3, "the tolerance is for logits of order 1"
    tokens = their_tokens(theirs, prompts)
    assert our_tokens(ours, prompts) == tokens
    assert len({tuple(row) for row in tokens}) == len(prompts), "texts differ, or the comparison says little"


@dataclass(frozen=True)
class Imported:
    folder: Path
    model: Any
    manifest: CheckpointManifest
    ours: Model


def their_class(architecture: str) -> Any:
    return getattr(transformers, architecture)


@pytest.fixture(params=THEIRS)
def imported(request: pytest.FixtureRequest, depot: LocalDepot, tmp_path: Path) -> Imported:
    """A model of `transformers`, saved by it, and what we make of it."""
    config = THEIRS[request.param]()
    names = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "t5gemma": "T5GemmaForConditionalGeneration"}
    model = their_class(names[config.model_type])(config)
    randomise(model, 3, config.model_type == "t5gemma")
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    name, manifest = import_folder(depot, folder, "imported")
    return Imported(folder, model, manifest, loaded(depot, name, manifest))


def config_of(manifest: CheckpointManifest) -> ModelConfig:
    return ModelConfig.model_validate_json(json.dumps(manifest.recipe["model"]))


def loaded(depot: LocalDepot, name: str, manifest: CheckpointManifest) -> Model:
    model = build_model(config_of(manifest))
    load_weights(depot, name, manifest, model)
    return model


def text_of(depot: LocalDepot, manifest: CheckpointManifest) -> TextSide:
    entry = manifest.tokenizer
    assert entry is not None
    return TextSide(depot.read(entry.object), entry.begin, entry.ends)


def test_an_imported_model_gives_their_logits_and_tokens(imported: Imported) -> None:
    assert_same(imported.model, imported.ours)


def test_what_was_imported_and_exported_is_what_it_was(imported: Imported, depot: LocalDepot, tmp_path: Path) -> None:
    config = config_of(imported.manifest)
    text = text_of(depot, imported.manifest)
    export_folder(depot, imported.manifest, config, text, 256, tmp_path / "again", torch.float32)
    again, report = type(imported.model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    before = dict(imported.model.named_parameters())
    for name, tensor in again.named_parameters():
        offset = 1.0 if tensor.ndim == 1 and config.kind == "encoder_decoder" else 0.0  # what its norms multiply by
        assert torch.equal(tensor + offset, before[name] + offset), name
    assert_same(again, imported.ours)
    assert import_folder(depot, tmp_path / "again", "again")[1].tensors == imported.manifest.tensors


@pytest.mark.parametrize("shape", OURS)
def test_an_exported_model_gives_our_logits_and_tokens(shape: str, depot: LocalDepot, tmp_path: Path) -> None:
    architecture, values = OURS[shape]
    config = ModelConfig(**values)
    model = build_model(config)
    randomise(model, 4, zero_centred_norms=False)
    entries = save_tensors(depot, model_tensors(model))
    manifest = CheckpointManifest("r", 0, 0, "", "", {}, {}, "", {}, entries)
    text = TextSide(tokenizer(), 0, (0,), puts_begin=True)
    assert export_folder(depot, manifest, config, text, 256, tmp_path / "out", torch.float32) == architecture
    theirs, report = their_class(architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert_same(theirs, model)


def test_an_exported_tokenizer_loads_and_begins_texts_as_training_does(depot: LocalDepot, tmp_path: Path) -> None:
    config = ModelConfig(**DECODER)
    model = build_model(config)
    randomise(model, 5, zero_centred_norms=False)
    manifest = CheckpointManifest("r", 0, 0, "", "", {}, {}, "", {}, save_tensors(depot, model_tensors(model)))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text = TextSide(tokenizer(), 0, (0,), template, puts_begin=True, names=((257, "<extra_id_0>"),))
    export_folder(depot, manifest, config, text, 256, tmp_path / "out", torch.bfloat16)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = theirs("né <extra_id_0>").input_ids
    assert ids[0] == 0
    assert ids[-1] == 257
    assert theirs.decode(ids, skip_special_tokens=True) == "né "
    batch = theirs(["a", "bcd"], padding=True, return_tensors="pt")
    assert batch.input_ids[0].tolist()[:2] == [0, 0], "a batch is padded on the left"
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert small.dtype == torch.bfloat16
    assert small.generate(**batch, max_new_tokens=2).shape[1] == batch.input_ids.shape[1] + 2
