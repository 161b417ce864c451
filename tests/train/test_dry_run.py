import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bushcraft.errors import RecipeError
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.parallel_model import Settings
from bushcraft.train.dry_run import estimate
from bushcraft.train.dry_run.estimate import Estimate, simulate
from bushcraft.train.dry_run.report import dry_run, print_dry_run
from bushcraft.train.dry_run.suggest import leaves_node
from bushcraft.train.recipe import Recipe
from bushcraft.train.resolve import load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

SMALL = (
    "run.global_batch_size=8",
    "run.microbatch_size=2",
    "run.sequence_length=128",
    "model.n_layers=6",
    "model.d_model=128",
    "model.n_heads=8",
    "model.n_kv_heads=4",
    "model.d_ff=256",
    "model.vocab_size=2048",
)
ADAMW = 'optimizer.name="adamw"'


def small(*overrides: str) -> Recipe:
    return load_recipe("tiny", [*SMALL, ADAMW, *overrides]).recipe


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(shard=2), Layout(tensor=2, context=2)], ids=str)
def test_a_step_extended_from_few_layers_and_microbatches_is_the_whole_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended = simulate(small("run.global_batch_size=20"), layout, Settings())
    monkeypatch.setattr(estimate, "FEWEST_LAYERS", 9)
    monkeypatch.setattr(estimate, "FEWEST_MICROBATCHES", 20)
    assert extended == simulate(small("run.global_batch_size=20"), layout, Settings())


def test_a_rank_of_many_holds_its_part_of_weights_gradients_and_state() -> None:
    one, four = simulate(small(), Layout(), Settings()), simulate(small(), Layout(shard=4), Settings())
    for kind in ("parameters", "gradients", "optimizer"):
        assert getattr(four, kind) == pytest.approx(getattr(one, kind) / 4, rel=0.01)
    assert one.sent == {}
    assert four.flops == one.flops / 4


def test_recomputing_holds_less_and_gathers_no_less() -> None:
    none, full = (simulate(small(), Layout(shard=2), Settings(recompute=what)) for what in ("none", "full"))
    assert full.activations < none.activations
    assert full.sent == none.sent


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(), Layout(shard=2)], ids=str)
def test_the_estimate_is_what_real_ranks_hold_and_send(layout: Layout) -> None:
    from measured_step import measure

    settings = Settings(precision="fp32")
    estimate, measured = simulate(small(), layout, settings, device="cpu"), measure(small(), layout, settings)
    assert estimate.peak == pytest.approx(measured["peak"], rel=0.05)
    assert estimate.sent == measured["sent"]


def test_an_axis_leaves_a_node_where_its_ranks_are_further_apart_than_a_node_is_wide() -> None:
    layout = Layout(shard=4, context=2, tensor=4)
    assert not leaves_node(layout, "tensor", 8)
    assert not leaves_node(layout, "context", 8)
    assert leaves_node(layout, "shard", 8)
    assert leaves_node(layout, "shard+context", 8)


@pytest.mark.slow
def test_a_layout_that_does_not_fit_is_told_with_one_that_does() -> None:
    fitting: Estimate = simulate(small(), Layout(shard=4), Settings(recompute="full"))
    device_gib = fitting.peak * 1.2 / 2**30
    found = dry_run(small("parallel.replicate=4"), None, world_size=4, device_memory_gib=device_gib)
    assert not found.fits
    assert all(estimate.peak <= found.device_bytes for _, _, estimate in found.suggestions)
    assert found.suggestions
    shown = io.StringIO()
    print_dry_run(Console(file=shown, width=120), found)
    assert "does not fit" in shown.getvalue()
    assert "--set parallel." in shown.getvalue()
    assert json.loads(found.to_json())["fits"] is False


def test_a_world_size_that_the_layout_does_not_divide_names_numbers_that_would_fit() -> None:
    with pytest.raises(RecipeError, match="a multiple of 4 ranks, such as 8"):
        dry_run(small("parallel.tensor=4"), None, world_size=7)
