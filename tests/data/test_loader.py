"""The loader serves each token once, in the order of the positions, and never a byte that it has not checked."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.data import packing
from bushcraft.data.loader import Loader, open_source, order_source
from bushcraft.data.manifest import DatasetManifest, PackTable, split_from_packs
from bushcraft.data.order import Order
from bushcraft.data.tokens import TokenStream
from bushcraft.errors import CorruptObjectError
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import FRAME_BYTES, MAGIC
from tests.conftest import random_documents, write_dataset, write_pack


def _loader(depot: LocalDepot, manifest: DatasetManifest, length: int, cache_bytes: int = 1 << 24) -> Loader:
    source = open_source(depot, "s", manifest, cache_bytes)
    return Loader((source,), Order((order_source(source, length),), 1, (1.0,), 8), length)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    length=st.integers(1, 700),
    seed=st.integers(0, 1000),
)
def test_an_epoch_has_every_token_as_a_target_exactly_once(
    depot: LocalDepot, sizes: list[int], length: int, seed: int
) -> None:
    packs = [list(random_documents(seed + i, n, 400)) for i, n in enumerate(sizes)]
    manifest = write_dataset(depot, "d", packs, [])
    stream = np.concatenate([document for pack in packs for document in pack])
    if len(stream) < 2:
        return
    loader = _loader(depot, manifest, length)
    n = loader.order.sources[0].n_sequences
    rows = loader.rows(0, n)
    in_order = np.argsort(rows.samples.index)
    assert rows.real.sum() == len(stream) - 1
    targets = np.concatenate([rows.tokens[i, 1 : 1 + rows.real[i]] for i in in_order])
    inputs = np.concatenate([rows.tokens[i, : rows.real[i]] for i in in_order])
    np.testing.assert_array_equal(targets, stream[1:])
    np.testing.assert_array_equal(inputs, stream[:-1])


@settings(max_examples=50)
@given(data=st.data())
def test_pieces_tile_each_row_and_begin_at_separators(data: st.DataObject) -> None:
    n_rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30))
    seed = data.draw(st.integers(0, 1000))
    tokens = np.random.default_rng(seed).integers(0, 4, (n_rows, width)).astype(np.uint16)
    real = np.array(data.draw(st.lists(st.integers(0, width), min_size=n_rows, max_size=n_rows)))
    found = packing.pieces(tokens, 0, real)
    covered = np.zeros((n_rows, width), int)
    for row, start, length in zip(found.row, found.start, found.length, strict=True):
        assert length > 0
        assert start + length <= width
        covered[row, start : start + length] += 1
        assert start == 0 or start == real[row] or tokens[row, start] == 0
        assert not (tokens[row, start + 1 : min(start + length, int(real[row]))] == 0).any()
    assert (covered == 1).all()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_any_cache_size_serves_the_same_rows(depot: LocalDepot, cache_bytes: int) -> None:
    manifest = write_dataset(depot, "d", [list(random_documents(i, 300)) for i in range(3)], [])
    rows = _loader(depot, manifest, 512, cache_bytes).rows(0, 200)
    reference = _loader(depot, manifest, 512, 1 << 24).rows(0, 200)
    np.testing.assert_array_equal(rows.tokens, reference.tokens)


def test_rows_do_not_depend_on_how_they_are_asked_for(depot: LocalDepot) -> None:
    manifest = write_dataset(depot, "d", [list(random_documents(i, 100)) for i in range(2)], [])
    loader = _loader(depot, manifest, 128)
    whole = loader.rows(0, 64)
    for begin in range(0, 64, 5):
        part = loader.rows(begin, min(begin + 5, 64))
        np.testing.assert_array_equal(part.tokens, whole.tokens[begin : begin + 5])
        assert whole.part(begin, min(begin + 5, 64)).digests() == part.digests()


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_byte_flipped_before_first_touch_is_never_served(depot: LocalDepot) -> None:
    entry = write_pack(depot, list(random_documents(0, 400)))
    split = split_from_packs(depot, [entry])
    stream = TokenStream(depot, split, 2, 1 << 30)
    per_frame = FRAME_BYTES // 2
    stream.rows(np.array([0]), 100)
    _flip(depot.path(entry.object), len(MAGIC) + FRAME_BYTES + 77)
    stream.rows(np.array([0]), 100)  # the first frame was touched and is good
    with pytest.raises(CorruptObjectError, match=rf"{entry.object}.*bytes {8 + FRAME_BYTES}-"):
        stream.rows(np.array([per_frame + 10]), 100)


def test_byte_flipped_after_an_eviction_is_noticed_when_the_frame_comes_back(depot: LocalDepot) -> None:
    entry = write_pack(depot, list(random_documents(0, 700)))
    stream = TokenStream(depot, split_from_packs(depot, [entry]), 2, 0)  # room for two frames
    per_frame = FRAME_BYTES // 2
    good = stream.rows(np.array([5]), 100)
    _flip(depot.path(entry.object), len(MAGIC) + 20)
    np.testing.assert_array_equal(stream.rows(np.array([5]), 100), good)  # served from what was checked
    stream.rows(np.arange(1, 5) * per_frame, 100)  # five frames want two places
    with pytest.raises(CorruptObjectError, match="frame 0"):
        stream.rows(np.array([5]), 100)


def test_explain_names_the_documents_of_a_sequence(depot: LocalDepot) -> None:
    documents = [np.array([0, *range(1, 9)], np.uint16) for _ in range(50)]
    manifest = write_dataset(depot, "d", [documents], [])
    loader = _loader(depot, manifest, 20)
    sample = loader.order.samples(np.array([3]))
    found = loader.explain(3)
    first = int(sample.index[0]) * 20
    assert found[0]["document"] == f"document-{first // 9}"
    assert found[0]["tokens"][0] == first % 9
    assert sum(d["tokens"][1] - d["tokens"][0] for d in found) == 21


def test_a_huge_corpus_opens_and_serves_without_reading_it(depot: LocalDepot) -> None:
    entry = write_pack(depot, list(random_documents(0, 200)))
    manifest = DatasetManifest("big", "", "", 4096, 0, 2, {"train": split_from_packs(depot, [entry] * 20_000)})
    loader = _loader(depot, manifest, 64)
    n = loader.order.sources[0].n_sequences
    assert n > 10**8 * 0.5 * entry.n_tokens * 20_000 / 64 / 10**8 / 1.01
    rows = loader.rows(n // 2, n // 2 + 8)
    assert rows.tokens.shape == (8, 65)


def test_pack_table_gives_back_every_entry_and_notices_damage(depot: LocalDepot) -> None:
    entries = [write_pack(depot, list(random_documents(i, 2, 50))) for i in range(3)] * 700
    split = split_from_packs(depot, entries)
    table = PackTable(depot, split)
    assert [table[i] for i in range(len(table))] == entries
    assert table.n_tokens.tolist() == [entry.n_tokens for entry in entries]
    _flip(depot.path(split.entries), 104 * 1024 + 5)
    table = PackTable(depot, split)
    assert table[1023] == entries[1023]
    with pytest.raises(CorruptObjectError, match=split.entries):
        table[1024]
