"""`bushcraft evaluate` has the figures of every architecture and objective, and the same ones as the run at its end."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bushcraft.data.manifest import ExampleFormat, read_manifest, split_from_packs, write_manifest
from bushcraft.errors import DataError
from bushcraft.store.workspace import Store
from bushcraft.train.evaluate_run import evaluate_run
from bushcraft.train.evaluation import Evaluation
from tests.train.conftest import events_of, train
from tests.train.test_objectives import KINDS

HELDOUT_BYTES = 2000
"""What `TINY_MODEL` puts its objective to; bits per byte at a run's end are of all held-out text."""
RUNS = {
    **{kind: chosen for kind, chosen in KINDS.items() if kind != "mixture"},
    "mixture": (
        "model.vocab_size=640",
        "objective.kind=mixture",
        "objective.parts.a.kind=causal",
        "objective.parts.b.kind=ul2",
    ),
}


def evaluated(
    store: Store, run: str, *datasets: str, max_bytes: int | None = HELDOUT_BYTES, probes: bool = False
) -> Evaluation:
    return evaluate_run(store, run, datasets, max_bytes, probes, [], None, "fp32", lambda _: None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_of_run_gets_the_figures_of_its_end(text_store: Store, kind: str) -> None:
    run = f"evaluated-{kind}"
    assert train(text_store, run, *RUNS[kind]).returncode == 0
    last = [event.data for event in events_of(text_store, run) if event.type == "evaluation"][-1]
    losses = evaluated(text_store, run).objective_losses
    assert losses["python"] == pytest.approx(last["objective_loss"], abs=1e-3)
    found = evaluated(text_store, run, max_bytes=None)
    if kind == "encdec-spans":
        assert found.domains == {}
        assert last["bits_per_byte"] is None
    else:
        assert found.domains["python"][0].n_bytes == last["n_bytes"]
        assert found.domains["python"][0].bits_per_byte == pytest.approx(last["bits_per_byte"], abs=1e-3)


@pytest.mark.slow
def test_a_model_that_only_fills_gaps_answers_probes_and_its_table_has_its_loss(text_store: Store) -> None:
    assert train(text_store, "gaps", *KINDS["encdec-spans"]).returncode == 0
    assert len(evaluated(text_store, "gaps", probes=True).probes) == 8
    command = [sys.executable, "-m", "bushcraft.cli", "evaluate", "gaps", "--store", str(text_store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "held-out text of python, under the run's own objective: " in done.stdout


@pytest.mark.slow
def test_all_data_sets_of_a_run_are_scored(text_store: Store) -> None:
    assert train(text_store, "two", "data.sources.a.dataset=other", "data.sources.a.weight=1").returncode == 0
    found = evaluated(text_store, "two")
    assert set(found.domains) == {"python", "other"}
    assert set(evaluated(text_store, "two", "other").domains) == {"other"}


def test_a_causal_run_has_no_other_loss(text_store: Store, reference: str) -> None:
    found = evaluated(text_store, reference)
    assert found.objective_losses == {}
    assert found.domains["python"][0].bits_per_byte is not None


CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "foreign": ({"fingerprint": "another"}, "data set 'foreign' has another tokenizer than run 'reference'"),
    "taught": (
        {"examples": ExampleFormat(1, 2, 3, "a")},
        "data set 'taught' holds instructions, and run 'reference' was",
    ),
    "all-train": ({"splits": {}}, "data set 'all-train' has no held-out documents"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_sets_that_cannot_be_asked_are_named(text_store: Store, reference: str, name: str) -> None:
    change, told = CHANGES[name]
    _, python = read_manifest(text_store.depot, "python")
    if "splits" in change:
        change = {"splits": {**python.splits, "heldout": split_from_packs(text_store.depot, [])}}
    write_manifest(text_store.depot, replace(python, name=name, **change))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=told):
        evaluated(text_store, reference, name)


def test_a_harness_that_is_missing_is_told_before_anything_is_measured(
    text_store: Store, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "bushcraft.train.lm_eval_adapter", raising=False)
    (tmp_path / "task.yaml").write_text("task: one\n")
    measured: list[str] = []
    with pytest.raises(DataError, match=r"which is not installed .*bushcraft\[eval\]"):
        evaluate_run(text_store, reference, None, None, True, [tmp_path / "task.yaml"], None, "fp32", measured.append)
    assert measured == []


def test_the_result_in_the_store_has_all_figures(text_store: Store, reference: str) -> None:
    found = evaluated(text_store, reference)
    name = text_store.depot.latest(f"evaluations/{reference}")
    assert name is not None
    kept = json.loads(text_store.depot.read(name))
    assert (kept["run"], kept["position"], kept["objective_losses"]) == (reference, found.position, {})
