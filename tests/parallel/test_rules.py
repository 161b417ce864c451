"""The one table: parts of all ranks make the whole, once; and a model knows nothing of it."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bushcraft
from bushcraft.model.config import ModelConfig
from bushcraft.model.transformer import build_model
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.parallel_model import whole_shapes
from bushcraft.parallel.rules import box, is_cut_by_tensor, local_config, stage_layers
from bushcraft.train.resolve import load_recipe

CONFIG = ModelConfig(
    kind="encoder_decoder",
    vocab_size=67,
    d_model=16,
    n_layers=3,
    n_heads=8,
    n_kv_heads=4,
    d_ff=24,
    share_embeddings=False,
    tie_embeddings=False,
    post_norm=True,
)
MODEL_FILES = sorted((Path(bushcraft.__file__).parent / "model").glob("*.py"))
PARALLEL_WORDS = {"rank", "world_size", "mesh", "layout", "shard", "replicate", "dist", "process_group", "fsdp"}
shapes, axes = whole_shapes(CONFIG)
layouts = st.builds(
    Layout,
    replicate=st.sampled_from([1, 2]),
    shard=st.integers(1, 5),
    context=st.sampled_from([1, 2, 4]),
    tensor=st.sampled_from([1, 2, 4]),
)


@settings(deadline=None)
@given(layouts)
def test_the_boxes_of_a_copy_cover_each_weight_once(layout: Layout) -> None:
    for name, shape in {(axes[name], shape): (name, shape) for name, shape in shapes.items()}.values():
        covered = torch.zeros(shape, dtype=torch.int64)
        for rank in range(layout.world_size):
            at = layout.coordinate(rank)
            if at.replicate == 0 and (at.tensor == 0 or is_cut_by_tensor(axes[name])):
                held = box(shape, axes[name], layout, at)
                covered[tuple(slice(o, o + n) for o, n in zip(held.offset, held.shape, strict=True))] += 1
        assert (covered == 1).all(), name


@pytest.mark.parametrize("recipe", ["tiny", "edge-7b", "flash-21b", "encdec-edge-7b", "encdec-tiny-ul2"])
def test_every_weight_of_every_recipe_has_an_axis_for_each_dimension(recipe: str) -> None:
    found, named = whole_shapes(load_recipe(recipe).recipe.model)
    assert {name: len(shape) for name, shape in found.items()} == {name: len(names) for name, names in named.items()}


@given(st.sampled_from([1, 2, 4]), st.integers(0, 3))
def test_the_model_of_a_tensor_rank_has_the_shapes_of_its_boxes(tensor: int, rank: int) -> None:
    layout = Layout(tensor=tensor)
    at = layout.coordinate(rank % tensor)
    with torch.device("meta"):
        model = build_model(local_config(CONFIG, layout, at))
    for name, parameter in model.named_parameters():
        assert tuple(parameter.shape) == box(shapes[name], axes[name], layout, at).shape


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3))
def test_stages_take_all_layers_in_turn_as_equally_as_can_be(n_layers: int, pipe: int, stages_per_rank: int) -> None:
    layout = Layout(pipe=pipe, stages_per_rank=stages_per_rank)
    stages = [stage_layers(n_layers, layout, stage) for stage in range(layout.n_stages)]
    assert [layer for stage in stages for layer in stage] == list(range(n_layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


@given(layouts)
def test_coordinates_are_those_of_ranks_counted_through(layout: Layout) -> None:
    found = [layout.coordinate(rank) for rank in range(layout.world_size)]
    assert len(set(found)) == layout.world_size
    assert found == sorted(found, key=lambda at: (at.pipe, at.replicate, at.shard, at.context, at.tensor))
    assert {layout.reader(at) for at in found} == set(range(layout.readers))


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_the_model_has_no_parallel_branch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not names & PARALLEL_WORDS
    assert "torch.distributed" not in path.read_text()
