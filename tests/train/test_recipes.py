"""Every recipe that comes along can be read, and has the size that its name says."""

import pytest
import torch

from bushcraft.model.parameter_count import parameter_count
from bushcraft.model.transformer import build_model
from bushcraft.train.resolve import bundled_recipes, load_recipe

NAMES = sorted(path.stem for path in bundled_recipes().glob("*.toml"))
SIZES = {"small": 126e6, "edge-7b": 7e9, "flash-21b": 21e9}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_sound_and_named_after_its_file(name: str) -> None:
    assert load_recipe(name).recipe.run.name == name


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_exactly(name: str) -> None:
    config = load_recipe(name).recipe.model
    with torch.device("meta"):
        model = build_model(config)
    assert parameter_count(config).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_a_decoder_and_its_encoder_decoder_twin_have_the_size_of_their_name(name: str) -> None:
    for twin in (name, f"encdec-{name}"):
        total = parameter_count(load_recipe(twin).recipe.model).total
        assert abs(total / SIZES[name] - 1) < 0.03, twin


def test_the_tiny_recipes_differ_from_each_other_in_architecture_and_objective_only() -> None:
    tiny, prefix = (load_recipe(name).recipe.model for name in ("tiny", "tiny-prefix"))
    span, ul2 = (load_recipe(name).recipe for name in ("encdec-tiny-span", "encdec-tiny-ul2"))
    assert tiny == prefix
    assert span.model == ul2.model
    assert span.optimizer == ul2.optimizer
