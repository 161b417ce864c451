"""A layout changes nothing: the same batches, the same weights at the start, the same losses; and a run that was saved
at one goes on at any other.

Sums are taken in another order, so losses agree to rounding. All pairs are in benchmarks/layout_matrix.py.
"""

import pytest

from bushcraft.store.workspace import Store
from tests.train.layouts import BATCH, LAYOUTS, MODELS, STEPS, Found, difference, run

TOLERANCE = 2e-5
MUON_TOLERANCE = 2e-3
"""Its products are made in bf16 where the machine has them: what differs in the last bit there differs more."""
MATRIX = [
    *(
        ("decoder, causal", layout)
        for layout in ("shard 3", "replicate 2 × shard 2", "shard 2 × tensor 2", "context 4")
    ),
    *(("decoder, prefix", at) for at in ("tensor 2", "context 2", "pipe 2", "pipe 2 × shard 2")),
    *(("encoder-decoder, UL2", at) for at in ("shard 2", "tensor 2", "context 2")),
]
PAIRS = [("one rank", "shard 3"), ("shard 3", "tensor 2"), ("shard 2 × tensor 2", "pipe 2"), ("pipe 2", "one rank")]
HALF = STEPS * BATCH // 2


@pytest.fixture(scope="module")
def alone(text_store: Store) -> dict[str, Found]:
    """Each model trained by one rank."""
    return {model: run(text_store.root, _name(model, "alone"), MODELS[model], {}) for model in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout"), MATRIX)
def test_any_layout_begins_with_the_same_weights_and_trains_the_same(
    text_store: Store, alone: dict[str, Found], model: str, layout: str
) -> None:
    found, expected = run(text_store.root, _name(model, layout), MODELS[model], LAYOUTS[layout]), alone[model]
    assert found.receipts == expected.receipts
    assert found.opened == expected.opened
    assert difference(found.losses, expected.losses) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_run_that_was_killed_at_one_layout_goes_on_at_another(
    text_store: Store, alone: dict[str, Found], before: str, after: str
) -> None:
    name, model = _name(before, after), "decoder, causal"
    killed = run(text_store.root, name, MODELS[model], LAYOUTS[before], kill_at_step=STEPS // 2 + 2)
    assert killed.closed is None
    found, expected = run(text_store.root, name, MODELS[model], LAYOUTS[after]), alone[model]
    assert found.opened.position == HALF
    assert found.receipts == expected.receipts
    assert difference(found.losses, expected.losses) < TOLERANCE


@pytest.mark.slow
def test_weights_and_optimizer_are_the_same_bits_after_a_change_of_layout(text_store: Store) -> None:
    layouts = ("shard 2 × tensor 2", "shard 3", "pipe 2", "one rank")
    ended = run(text_store.root, "bits", ("run.sequences=16", "optimizer.name=muon"), LAYOUTS["shard 2"]).closed
    assert ended is not None
    assert {name.split("/")[1] for name in ended.tensors if "/" in name} == {"exp_avg", "exp_avg_sq", "momentum"}
    for layout in layouts:
        found = run(text_store.root, "bits", ("run.sequences=16", "optimizer.name=muon"), LAYOUTS[layout])
        assert found.opened == ended


@pytest.mark.slow
def test_the_same_layout_goes_on_to_the_same_bits(text_store: Store) -> None:
    model, layout = "decoder, prefix", LAYOUTS["shard 3"]
    straight = run(text_store.root, "straight", MODELS[model], layout)
    run(text_store.root, "resumed", MODELS[model], layout, kill_at_step=STEPS // 2 + 3)
    assert run(text_store.root, "resumed", MODELS[model], layout).closed == straight.closed


@pytest.mark.slow
def test_muon_agrees_over_layouts(text_store: Store) -> None:
    expected = run(text_store.root, "muon", ("optimizer.name=muon",), {})
    for layout in ("shard 3", "shard 2 × tensor 2"):
        found = run(text_store.root, _name("muon", layout), ("optimizer.name=muon",), LAYOUTS[layout])
        assert difference(found.losses, expected.losses) < MUON_TOLERANCE


@pytest.mark.slow
def test_recomputing_and_summing_each_microbatch_change_nothing(text_store: Store, alone: dict[str, Found]) -> None:
    settings = ("parallel.recompute=selective", "parallel.reduce_each_microbatch=true", "parallel.reshard=false")
    found = run(text_store.root, "settings", settings, LAYOUTS["shard 2"])
    assert difference(found.losses, alone["decoder, causal"].losses) < TOLERANCE


def _name(*parts: str) -> str:
    return "-".join("".join(c for c in part if c.isalnum()) for part in parts)
