"""A mixture that changes in mid-run: a record in the ledger, from which every sequence can be told again."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from bushcraft.data.loader import Loader
from bushcraft.data.manifest import read_manifest, write_manifest
from bushcraft.errors import DataError
from bushcraft.store.workspace import Store
from bushcraft.train import receipt as receipts
from bushcraft.train.compare import compare
from bushcraft.train.open_data import open_datasets, open_loader
from bushcraft.train.run_record import read_record
from tests.train.conftest import events_of, tiny_session, train, train_and_stop

TWO_SOURCES = ('data.sources.other={dataset="other", weight=1.0}', "evaluate.every_sequences=0")
CHANGED = (*TWO_SOURCES, "data.sources.other.weight=3")
CHANGED_AT = 32


@pytest.fixture(scope="module")
def changed_runs(text_store: Store) -> list[str]:
    """Two runs that were stopped at `CHANGED_AT`, and went on with three sequences of `other` to one of `python`."""
    names = ["changed-a", "changed-b"]
    for name in names:
        train_and_stop(text_store, name, "bushcraft.train.trainer._update", CHANGED_AT // 8, *TWO_SOURCES)
        done = train(text_store, name, *CHANGED)
        assert done.returncode == 0, done.stderr
        assert f"from position {CHANGED_AT} on: data.sources.other.weight: 1.0 → 3.0" in done.stdout
    return names


def recorded_loader(store: Store, name: str) -> Loader:
    """What the ledger alone says that the run has read."""
    history = events_of(store, name)
    record = read_record(history, name)
    return open_loader(store, record.recipe, record, open_datasets(store, record.recipe, record.datasets), history)


@pytest.mark.slow
def test_the_change_is_a_record_at_the_position_of_the_checkpoint(text_store: Store, changed_runs: list[str]) -> None:
    (change,) = (event for event in events_of(text_store, changed_runs[0]) if event.type == "change")
    assert change.position == CHANGED_AT
    assert change.data["weights"] == {"python": 1.0, "other": 3.0}
    assert change.data["keys"] == ["data.sources.other.weight"]


@pytest.mark.slow
def test_the_same_change_twice_gives_the_same_bits(text_store: Store, changed_runs: list[str]) -> None:
    found = compare(text_store, *changed_runs)
    assert found.identical, found
    assert found.ends == (96, 96)


@pytest.mark.slow
def test_the_ledger_tells_every_byte_that_was_read(text_store: Store, changed_runs: list[str]) -> None:
    loader = recorded_loader(text_store, changed_runs[0])
    receipt = receipts.EMPTY
    steps = [event for event in events_of(text_store, changed_runs[0]) if event.type == "step"]
    for step in steps:
        rows = loader.rows(step.data["begin"], step.position)
        receipt = receipts.extend(receipt, step.data["begin"], step.position, rows.digests())
        assert step.data["receipt"] == receipt, step.position
    assert len(steps) == 12


@pytest.mark.slow
def test_sources_are_read_by_the_old_weights_before_the_change_and_by_the_new_ones_after_it(
    text_store: Store, changed_runs: list[str]
) -> None:
    loader = recorded_loader(text_store, changed_runs[0])
    sources = [loader.explain(position)[0]["source"] for position in range(96)]
    assert Counter(sources[:CHANGED_AT]) == {"python": 16, "other": 16}
    assert Counter(sources[CHANGED_AT:]) == {"python": 16, "other": 48}


@pytest.mark.slow
def test_explain_names_the_documents_of_a_position_after_the_change(text_store: Store, changed_runs: list[str]) -> None:
    store = ["--store", str(text_store.root), "--json"]
    command = [sys.executable, "-m", "bushcraft.cli", "run", "explain", changed_runs[0], "--position", "40", *store]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == recorded_loader(text_store, changed_runs[0]).explain(40)
    assert all(document["document"].endswith(".py") for document in told)


def test_sources_with_different_separators_are_refused(text_store: Store) -> None:
    """One token tells where a document begins, for attention and for the evaluation."""
    _, manifest = read_manifest(text_store.depot, "other")
    write_manifest(text_store.depot, replace(manifest, name="odd", separator_id=5))
    with (
        pytest.raises(DataError, match="'python' and 'odd' have different separators"),
        tiny_session(text_store, "odd", 'data.sources.odd={dataset="odd"}'),
    ):
        pass


def test_the_order_in_which_a_recipe_names_its_sources_changes_nothing_in_a_run_that_has_begun(
    text_store: Store,
) -> None:
    """The run keeps the order of its first start: its receipts hold the numbers of the sources."""
    python, other = '{dataset="python", weight=2.0}', '{dataset="other", weight=1.0}'
    found = []
    for sources in (f"{{python={python}, other={other}}}", f"{{other={other}, python={python}}}"):
        with tiny_session(text_store, "reordered", f"data.sources={sources}") as session:
            found.append((tuple(source.name for source in session.sources), session.loader.rows(0, 32).digests()))
    assert found[0] == found[1]
    assert found[0] == (("python", "other"), recorded_loader(text_store, "reordered").rows(0, 32).digests())
