"""`bushcraft evaluate` measures a run by domain and by probes, keeps the result, and says plainly what it cannot do."""

import json
import subprocess
import sys

import pytest

from bushcraft.store.workspace import Store
from tests.train.conftest import events_of


def evaluate(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bushcraft.cli", "evaluate", *arguments, "--store", str(store.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_whole_is_what_the_run_found_at_its_end(text_store: Store, reference: str) -> None:
    done = evaluate(text_store, reference, "--probes", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (parts,) = found["domains"].values()
    last = [event for event in events_of(text_store, reference) if event.type == "evaluation"][-1]
    assert parts[0]["name"] == "all"
    assert parts[0]["n_bytes"] == last.data["n_bytes"]
    assert parts[0]["bits_per_byte"] == pytest.approx(last.data["bits_per_byte"], abs=1e-3)
    assert {probe["name"] for probe in found["probes"]} >= {"copy", "grammar", "addition, 2 digits"}
    assert text_store.depot.latest(f"evaluations/{reference}") == found["evaluation"]
    kept = json.loads(text_store.depot.read(found["evaluation"]))
    assert kept["domains"] == found["domains"]
    table = evaluate(text_store, reference).stdout
    assert f"{parts[0]['bits_per_byte']:.4f}" in table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nothing"), "there is no data set 'nothing'"),
        (("--precision", "fp8"), "Use fp32 or bf16"),
        (("--lm-eval", "nowhere.yaml"), "there is no task file nowhere.yaml"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line(
    text_store: Store, reference: str, arguments: tuple[str, ...], told: str
) -> None:
    done = evaluate(text_store, reference, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
