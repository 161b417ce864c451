"""Every objective and optimizer trains in a real run, falls in loss, and goes on to the same bits."""

import pytest

from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from tests.train.conftest import events_of, train, train_and_stop

SETTINGS = ("objective.kind=prefix", "optimizer.name=muon")


@pytest.mark.slow
def test_prefix_and_muon_fall_in_loss_and_go_on_to_the_same_bits(text_store: Store) -> None:
    straight = train(text_store, "straight", *SETTINGS)
    assert straight.returncode == 0, straight.stderr
    told, _ = train_and_stop(text_store, "stopped-prefix", "bushcraft.train.trainer._update", 5, *SETTINGS)
    assert "stopped at position 40 of 96" in told
    done = train(text_store, "stopped-prefix", *SETTINGS)
    assert done.returncode == 0, done.stderr
    found = compare(text_store, "straight", "stopped-prefix")
    assert found.identical, found
    losses = [event.data["loss"] for event in events_of(text_store, "straight") if event.type == "step"]
    assert losses[-1] < losses[0] - 0.3


def test_prefixes_across_documents_are_refused(text_store: Store) -> None:
    done = train(text_store, "across", "objective.kind=prefix", "objective.document_mask=false")
    assert done.returncode == 2
    assert "use objective.document_mask = true" in done.stderr
    assert done.stderr.count("\n") == 1
