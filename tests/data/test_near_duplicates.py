import io
import random

import numpy as np
import pytest

from bushcraft.data.duplicates import HeldoutIndex, shingles, sketch

WORDS = [f"word{i}" for i in range(5000)]


def text_of(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


@pytest.mark.parametrize(("share", "dropped"), [(1.0, True), (0.8, True), (0.6, True), (0.35, False), (0.0, False)])
def test_a_heldout_document_counts_as_contained_from_half_of_it_on(share: float, dropped: bool) -> None:
    heldout = text_of(1, 1000)
    words = heldout.split()
    training = text_of(2, 3000) + " " + " ".join(words[: int(share * 1000)]) + " " + text_of(3, 3000)
    index = HeldoutIndex.of([text_of(9, 500).encode(), heldout.encode()])
    assert index.contained_in(training.encode()) == ([1] if dropped else [])


def test_case_spacing_and_punctuation_do_not_hide_a_copy() -> None:
    heldout = text_of(1, 200)
    index = HeldoutIndex.of([heldout.encode()])
    assert index.contained_in(heldout.upper().replace(" ", ",\n\t").encode()) == [0]


def test_halves_in_two_training_documents_do_not_add_up() -> None:
    words = text_of(1, 1000).split()
    index = HeldoutIndex.of([" ".join(words).encode()])
    for third in range(3):
        assert index.contained_in(" ".join(words[third * 333 : third * 333 + 333]).encode()) == []


def test_one_training_document_may_contain_many_heldout_ones() -> None:
    shared = text_of(5, 100)
    documents = [f"{shared} {text_of(10 + i, 10)}".encode() for i in range(50)]
    assert HeldoutIndex.of(documents).contained_in(shared.encode()) == list(range(50))


def test_shingles_do_not_depend_on_where_they_stand() -> None:
    text = text_of(4, 300).encode()
    assert np.isin(shingles(text), shingles(b"Some other beginning. " + text + b" and an end")).all()
    assert len(shingles(text)) == 300 - 8 + 1


def test_texts_without_blanks_are_compared_by_characters() -> None:
    heldout = "".join(chr(0x4E00 + random.Random(1).randrange(3000) + i) for i in range(300))
    index = HeldoutIndex.of([heldout.encode()])
    assert index.contained_in(("前言" + heldout + "后记").encode()) == [0]
    assert index.contained_in(heldout[:100].encode()) == []


def test_short_and_empty_documents_are_harmless() -> None:
    index = HeldoutIndex.of([b"", b"three short words", text_of(1, 50).encode()])
    assert index.contained_in(b"") == []
    assert index.contained_in(b"three short words") == []
    assert HeldoutIndex.of([]).contained_in(text_of(1, 50).encode()) == []
    assert len(sketch(text_of(1, 5000).encode())) == 128


def test_an_index_comes_back_from_disk_as_it_was(tmp_path) -> None:
    index = HeldoutIndex.of([text_of(i, 200).encode() for i in range(20)])
    buffer = io.BytesIO()
    index.save(buffer)
    (tmp_path / "index").write_bytes(buffer.getvalue())
    again = HeldoutIndex.load(tmp_path / "index")
    assert again.contained_in(text_of(7, 200).encode()) == [7]
