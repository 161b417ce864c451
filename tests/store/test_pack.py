"""A pack gives back each document, and notices every flipped byte before it serves one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError
from bushcraft.store import pack as pack_module
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import FRAME_BYTES, MAGIC, PackEntry, PackReader, PackWriter, verify_pack
from tests.conftest import random_documents, write_pack


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50_000), min_size=1, max_size=12),
    itemsize=st.sampled_from([2, 4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_documents_come_back_as_they_went_in(depot: LocalDepot, lengths: list[int], itemsize: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 1 << (8 * itemsize), n).astype(f"<u{itemsize}") for n in lengths]
    reader = PackReader(depot, write_pack(depot, documents, itemsize))
    read = list(reader.documents())
    assert [name for name, _, _ in read] == [f"document-{i}" for i in range(len(lengths))]
    for (_, tokens, n_bytes), document in zip(read, documents, strict=True):
        np.testing.assert_array_equal(tokens, document)
        assert n_bytes == 4 * len(document)


def test_streamed_document_is_the_same_as_a_whole_one(depot: LocalDepot) -> None:
    tokens = np.arange(300_000, dtype=np.uint32)
    whole = write_pack(depot, [tokens], 4)
    writer = PackWriter(depot, 4)
    writer.begin("document-0")
    for piece in np.array_split(tokens, 7):
        writer.extend(piece, 4 * len(piece))
    assert writer.close() == whole


def test_every_flipped_byte_is_noticed(depot: LocalDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "FRAME_BYTES", 512)  # several frames in a file that is small enough to try all
    entry = write_pack(depot, list(random_documents(0, 6, max_tokens=200)))
    path = depot.path(entry.object)
    good = path.read_bytes()
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CorruptObjectError):
            _read_everything(depot, entry)
        with pytest.raises(CorruptObjectError):
            verify_pack(depot, entry)


def _read_everything(depot: LocalDepot, entry: PackEntry) -> None:
    """All reads that training and inspection make, but not the hash of the whole pack."""
    list(PackReader(depot, entry).documents())


def test_corruption_names_the_pack_and_the_byte_range(depot: LocalDepot) -> None:
    entry = write_pack(depot, list(random_documents(0, 300)))
    begin = len(MAGIC) + FRAME_BYTES
    with depot.path(entry.object).open("r+b") as file:
        file.seek(begin + 1000)
        byte = file.read(1)[0]
        file.seek(begin + 1000)
        file.write(bytes([byte ^ 1]))
    reader = PackReader(depot, entry)
    reader.frame(0)
    with pytest.raises(CorruptObjectError, match=rf"{entry.object}.*frame 1, bytes {begin}-{begin + FRAME_BYTES}"):
        reader.frame(1)


def test_truncated_pack_is_noticed(depot: LocalDepot) -> None:
    entry = write_pack(depot, list(random_documents(0, 10)))
    path = depot.path(entry.object)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptObjectError):
        PackReader(depot, entry)


def test_same_documents_give_the_same_pack(depot: LocalDepot) -> None:
    documents = list(random_documents(3, 20))
    assert write_pack(depot, documents) == write_pack(depot, documents)


def test_nothing_is_in_the_depot_before_close(depot: LocalDepot) -> None:
    writer = PackWriter(depot, 2)
    writer.add(np.zeros(500_000, np.uint16), "a", 1)
    assert not list((depot.root / "objects").rglob("*"))
    writer.discard()
    assert not list((depot.root / "incoming").iterdir())


def test_empty_pack_is_none(depot: LocalDepot) -> None:
    assert PackWriter(depot, 2).close() is None
