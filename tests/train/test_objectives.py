"""Every architecture and objective trains in a real run, falls in loss, and goes on to the same bits."""

import numpy as np
import pytest

from bushcraft.objectives.objective import ObjectiveMixture
from bushcraft.objectives.special import MODES, special_tokens
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from bushcraft.train.objective import build_objective
from bushcraft.train.recipe import Recipe
from bushcraft.train.resolve import load_recipe
from bushcraft.train.run_record import present_weights
from tests.train.conftest import events_of, train, train_and_stop
from tests.train.saved_model import save_model

ENCODER_DECODER = ("model.kind=encoder_decoder", "model.n_layers=1", "model.vocab_size=640")
KINDS = {
    "prefix": ("objective.kind=prefix", "optimizer.name=muon"),
    "encdec-prefix": (*ENCODER_DECODER, "objective.kind=prefix", "optimizer.name=muon"),
    "encdec-spans": (*ENCODER_DECODER, "objective.kind=span_corruption", "optimizer.name=muon"),
    "encdec-ul2": (*ENCODER_DECODER, "objective.kind=ul2", "optimizer.name=muon"),
    "decoder-ul2": ("model.vocab_size=640", "objective.kind=ul2r", "optimizer.name=muon"),
    "mixture": (
        "model.vocab_size=640",
        "objective.kind=mixture",
        "objective.parts.next.kind=causal",
        "objective.parts.fill.kind=ul2",
        "optimizer.name=muon",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_falls_in_loss_and_goes_on_to_the_same_bits(text_store: Store, kind: str) -> None:
    straight, stopped = f"straight-{kind}", f"stopped-{kind}"
    done = train(text_store, straight, *KINDS[kind])
    assert done.returncode == 0, done.stderr
    told, _ = train_and_stop(text_store, stopped, "bushcraft.train.trainer._update", 5, *KINDS[kind])
    assert "stopped at position 40 of 96" in told
    done = train(text_store, stopped, *KINDS[kind])
    assert done.returncode == 0, done.stderr
    found = compare(text_store, straight, stopped)
    assert found.identical, found
    losses = [event.data["loss"] for event in events_of(text_store, straight) if event.type == "step"]
    assert losses[-1] < losses[0] - 0.3
    judged = [event.data for event in events_of(text_store, straight) if event.type == "evaluation"]
    assert judged[-1]["objective_loss"] < losses[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("objective.kind=prefix", "objective.document_mask=false"), "use objective.document_mask = true"),
        (("model.kind=encoder_decoder",), 'objective "causal" leaves the encoder'),
        (("objective.kind=ul2",), "model.vocab_size = 512 has no room for the objective's 103"),
        (("objective.kind=mixture",), "needs at least two parts"),
        (("objective.parts.a.kind=ul2",), 'objective.kind = "causal": use "mixture"'),
        (("run.start_from=nobody",), "run 'nobody' has no checkpoint"),
        (("model.n_encoder_layers=2",), "a decoder has no encoder"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(text_store: Store, settings: tuple[str, ...], told: str) -> None:
    done = train(text_store, "refused", *settings)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (text_store.runs / "refused").exists()


@pytest.mark.slow
def test_the_weights_of_a_mixtures_parts_change_in_mid_run(text_store: Store) -> None:
    train_and_stop(text_store, "reweighted", "bushcraft.train.trainer._update", 5, *KINDS["mixture"])
    done = train(text_store, "reweighted", *KINDS["mixture"], "objective.parts.fill.weight=0.01")
    assert done.returncode == 0, done.stderr
    (change,) = [event for event in events_of(text_store, "reweighted") if event.type == "change"]
    assert (change.position, change.data["objective_weights"]) == (40, {"next": 1.0, "fill": 0.01})


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another_and_a_larger_vocabulary(text_store: Store, reference: str) -> None:
    more = ("model.vocab_size=640", "objective.kind=ul2r")
    done = train(text_store, "continued", *more, f"run.start_from={reference}")
    assert done.returncode == 0, done.stderr
    fresh = train(text_store, "fresh", *more)
    assert fresh.returncode == 0, fresh.stderr
    first = {
        name: next(e.data["loss"] for e in events_of(text_store, name) if e.type == "step")
        for name in ("continued", "fresh")
    }
    assert first["continued"] < first["fresh"] - 0.3
    refused = train(text_store, "other", *KINDS["encdec-ul2"], f"run.start_from={reference}")
    assert refused.returncode == 2
    assert "is of another architecture: it misses the tensor decoder." in refused.stderr
    assert not (text_store.runs / "other").exists()


def test_weights_of_a_model_with_another_tokenizer_are_refused(text_store: Store) -> None:
    other = save_model(text_store, "other-tokenizer", "model.vocab_size=512")
    done = train(text_store, "mismatched", f"run.start_from={other}")
    assert done.returncode == 2
    assert "has another tokenizer than run.start_from" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (text_store.runs / "mismatched").exists()


def test_the_order_in_which_parts_are_written_changes_nothing() -> None:
    parts = ["objective.parts.b.kind=prefix", "objective.parts.a.kind=ul2"]
    special = special_tokens({}, 512, 0, 100, MODES["released"])

    def part_of(settings: list[str]) -> list[int]:
        recipe = load_recipe("smoke", ["objective.kind=mixture", *settings]).recipe
        stored = Recipe.from_json(recipe.to_json())
        found = []
        for each in (recipe, stored):
            objective = build_objective(each, special, ((0, present_weights(each)),))
            assert isinstance(objective, ObjectiveMixture)
            assert [*objective.parts] == ["a", "b"]
            found.append(objective.part(np.arange(20)).tolist())
        assert found[0] == found[1]
        return found[0]

    assert part_of(parts) == part_of(parts[::-1])
