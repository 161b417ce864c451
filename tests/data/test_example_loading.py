"""A position of instruction data is one whole example, checked before it is served."""

from pathlib import Path

import numpy as np
import pytest

from bushcraft.data.build_settings import BuildSettings
from bushcraft.data.chat_template import ChatTemplate
from bushcraft.data.examples import ExampleSettings
from bushcraft.data.loader import Loader, open_source, order_source
from bushcraft.data.manifest import DatasetManifest, PackTable
from bushcraft.data.order import Order
from bushcraft.errors import CorruptObjectError
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import MAGIC
from bushcraft.store.workspace import Store
from tests.conftest import random_documents, write_dataset
from tests.data.chatml import CHATML, ROWS, SEPARATOR, TOKENIZER, build, stored


def loader_of(depot: LocalDepot, manifests: dict[str, DatasetManifest], length: int) -> Loader:
    sources = tuple(open_source(depot, name, manifest, 1 << 24) for name, manifest in manifests.items())
    weights = (1.0,) * len(sources)
    return Loader(sources, Order(tuple(order_source(s, length) for s in sources), 1, weights, 8), length)


@pytest.fixture
def many_packs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetManifest:
    """Instruction data in packs of 7 examples."""
    monkeypatch.setattr("bushcraft.data.encode.MOST_DOCUMENTS", 7)
    return build(store, tmp_path, ROWS)[1]


def test_an_epoch_has_each_example_whole_exactly_once(depot: LocalDepot, many_packs: DatasetManifest) -> None:
    assert many_packs.examples is not None
    assert many_packs.splits["train"].n_packs > 10
    length = many_packs.examples.longest
    loader = loader_of(depot, {"d": many_packs}, length)
    n = loader.order.sources[0].n_sequences
    assert n == many_packs.splits["train"].n_documents
    rows = loader.rows(0, n)
    found = [row[:real].tolist() for row, real in zip(rows.tokens, rows.real, strict=True)]
    assert sorted(found) == sorted(tokens for tokens, _ in stored(depot, many_packs).values())
    assert not any(row[real:].any() for row, real in zip(rows.tokens, rows.real, strict=True))
    assert rows.real.max() == length + 1
    for position in range(0, n, 10):
        (about,) = loader.explain(position)
        tokens, _ = stored(depot, many_packs)[about["document"]]
        assert tokens == found[position]
        assert about["tokens"] == [0, len(tokens)]


def test_pieces_of_examples_are_the_example_and_its_padding(depot: LocalDepot, many_packs: DatasetManifest) -> None:
    assert many_packs.examples is not None
    width = many_packs.examples.longest
    rows = loader_of(depot, {"d": many_packs}, width).rows(0, 50)
    for row, real in enumerate(rows.real.tolist()):
        mine = rows.pieces.row == row
        bounds = list(zip(rows.pieces.start[mine].tolist(), rows.pieces.length[mine].tolist(), strict=True))
        assert bounds == ([(0, real), (real, width - real)] if real < width else [(0, width)])


def test_separators_that_a_template_writes_do_not_cut_an_example(
    depot: LocalDepot, store: Store, tmp_path: Path
) -> None:
    template = ChatTemplate(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    settings = BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(template))
    _, manifest = build(store, tmp_path, ROWS, settings)
    assert manifest.examples is not None
    rows = loader_of(depot, {"d": manifest}, manifest.examples.longest).rows(0, 20)
    assert ((rows.tokens == SEPARATOR).sum(axis=1) >= 3).all()
    assert len(rows.pieces.row) == 20 + (rows.real < manifest.examples.longest).sum()


def test_text_and_examples_can_be_rows_of_one_batch(depot: LocalDepot, many_packs: DatasetManifest) -> None:
    assert many_packs.examples is not None
    text = write_dataset(depot, "text", [list(random_documents(1, 50, 400))], [])
    length = many_packs.examples.longest
    both = loader_of(depot, {"d": many_packs, "text": text}, length).rows(0, 60)
    for name, manifest, source in (("d", many_packs, 0), ("text", text, 1)):
        alone = loader_of(depot, {name: manifest}, length).rows(0, 30)
        mine = np.flatnonzero(both.samples.source == source)
        np.testing.assert_array_equal(both.tokens[mine], alone.tokens)
        np.testing.assert_array_equal(both.real[mine], alone.real)
        starts = [both.pieces.start[both.pieces.row == row].tolist() for row in mine]
        assert starts == [alone.pieces.start[alone.pieces.row == row].tolist() for row in range(30)]


def test_a_flipped_byte_of_an_example_is_never_served(depot: LocalDepot, many_packs: DatasetManifest) -> None:
    entry = PackTable(depot, many_packs.splits["train"])[3]
    path = depot.path(entry.object)
    data = bytearray(path.read_bytes())
    data[len(MAGIC) + 5] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert many_packs.examples is not None
    loader = loader_of(depot, {"d": many_packs}, many_packs.examples.longest)
    with pytest.raises(CorruptObjectError, match=entry.object):
        loader.rows(0, loader.order.sources[0].n_sequences)
