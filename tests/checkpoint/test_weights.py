"""Weights go into a model of their own architecture only, and what does not fit is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import load_weights, model_tensors
from bushcraft.errors import CheckpointError
from bushcraft.model.config import ModelConfig
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import Model, build_model
from bushcraft.parallel.box import Part
from bushcraft.store.workspace import Store
from tests.checkpoint.layouts import ranks_of

SMALL = ModelConfig(vocab_size=16, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=8)


def filled(seed: int, **change: object) -> Model:
    model = build_model(ModelConfig(**{**SMALL.model_dump(), **change}))
    initialise(model, seed)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Store, CheckpointManifest]:
    store = Store.create(tmp_path / "store")
    tensors = save_tensors(store.depot, model_tensors(filled(1)))
    return store, CheckpointManifest("run", 0, 0, "", "", {}, {}, "", {}, tensors)


def test_the_same_architecture_takes_every_tensor(saved: tuple[Store, CheckpointManifest]) -> None:
    store, manifest = saved
    model = filled(2)
    load_weights(store.depot, "f" * 64, manifest, model)
    for mine, theirs in zip(model.parameters(), filled(1).parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"n_layers": 2},
            "ffffffffffff is of another architecture: it misses the tensor layers.1.attention.key.weight and",
        ),
        ({"qk_norm": False}, "also has the tensor layers.0.attention.key_norm.weight and 1 more"),
        ({"kind": "encoder_decoder"}, "misses the tensor decoder.embedding.weight and"),
        ({"d_ff": 12}, "tensor layers.0.mlp.gate.weight is float32[8, 8], the model wants float32[12, 8]"),
        ({"vocab_size": 20}, "tensor embedding.weight is float32[16, 8], the model wants float32[20, 8]"),
    ],
)
def test_another_architecture_is_refused_by_the_name_of_a_tensor(
    saved: tuple[Store, CheckpointManifest], change: dict[str, object], told: str
) -> None:
    store, manifest = saved
    with pytest.raises(CheckpointError) as refused:
        load_weights(store.depot, "f" * 64, manifest, filled(2, **change))
    assert told in str(refused.value)


def test_a_vocabulary_may_grow_and_keeps_what_its_new_rows_hold(saved: tuple[Store, CheckpointManifest]) -> None:
    store, manifest = saved
    model, fresh = filled(2, vocab_size=20), filled(2, vocab_size=20)
    load_weights(store.depot, "f" * 64, manifest, model, grow_vocabulary=True)
    new = dict(model.named_parameters())["embedding.weight"]
    assert torch.equal(new[:16], dict(filled(1).named_parameters())["embedding.weight"])
    assert torch.equal(new[16:], dict(fresh.named_parameters())["embedding.weight"][16:])


def parts_of(model: Model, grid_rank: int, n_ranks: int) -> dict[str, Part]:
    """What a rank holds of the model, cut along the first dimension."""
    found = {}
    for name, parameter in model.named_parameters():
        part = ranks_of(parameter.data, (n_ranks, *[1] * (parameter.ndim - 1)))[grid_rank]
        found[name] = replace(part, tensor=part.tensor.clone())
    return found


def test_each_rank_fills_its_parts(saved: tuple[Store, CheckpointManifest]) -> None:
    store, manifest = saved
    for rank in range(3):
        parts = parts_of(filled(2), rank, 3)
        load_weights(store.depot, "f" * 64, manifest, parts)
        for name, expected in parts_of(filled(1), rank, 3).items():
            assert torch.equal(parts[name].tensor, expected.tensor)


def test_a_rank_may_hold_some_tensors_only_but_none_that_is_not_there(saved: tuple[Store, CheckpointManifest]) -> None:
    store, manifest = saved
    part = parts_of(filled(2), 0, 1)["embedding.weight"]
    load_weights(store.depot, "f" * 64, manifest, {"embedding.weight": part})
    with pytest.raises(CheckpointError, match=r"ffffffffffff is of another architecture: it misses the tensor another"):
        load_weights(store.depot, "f" * 64, manifest, {"embedding.weight": part, "another": part})


def test_a_vocabulary_grows_in_parts_as_it_does_whole(saved: tuple[Store, CheckpointManifest]) -> None:
    """16 rows are there; of 40 the third and fourth of four ranks hold none, the second some."""
    store, manifest = saved
    whole = filled(2, vocab_size=40)
    load_weights(store.depot, "f" * 64, manifest, whole, grow_vocabulary=True)
    for rank in range(4):
        parts = parts_of(filled(2, vocab_size=40), rank, 4)
        load_weights(store.depot, "f" * 64, manifest, parts, grow_vocabulary=True)
        for name, expected in parts_of(whole, rank, 4).items():
            assert torch.equal(parts[name].tensor, expected.tensor)
    with pytest.raises(CheckpointError, match=r"tensor embedding.weight is float32\[16, 8\], the model wants float32"):
        load_weights(store.depot, "f" * 64, manifest, parts)
