"""Text from a model: whole characters, special tokens by their names, the same alone and among others."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.store.workspace import Store
from bushcraft.train.load_model import load_model
from bushcraft.train.sample import Spelling, TextModel
from tests.train.saved_model import SEPARATOR, byte_tokenizer, save_model

KINDS = {
    "causal": ["objective.kind=causal"],
    "prefix": ["objective.kind=prefix"],
    "ul2": ["objective.kind=ul2"],
    "encoder-decoder prefix": ["objective.kind=prefix", "model.kind=encoder_decoder"],
    "encoder-decoder span corruption": ["objective.kind=span_corruption", "model.kind=encoder_decoder"],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def texts(model: TextModel, prompts: list[str], n_tokens: int, seed: int = 0, temperature: float = 1.0) -> list[str]:
    found: dict[int, str] = defaultdict(str)
    read = [model.prompts.read(prompt) for prompt in prompts]
    for number, piece in model.continuations(read, n_tokens, temperature, 0.95, seed):
        found[number] += piece
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_same_alone_and_among_others(kind: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(store, "model", *KINDS[kind])
    model, _ = load_model(store, "model")
    monkeypatch.setattr("bushcraft.train.sample.AT_ONCE", 2)
    prompts = ["def f(x):", "a", "import os", "äöü", ""]
    together = texts(model, prompts, 12, seed=7)
    assert together == [texts(model, [prompt], 12, seed=7 + n)[0] for n, prompt in enumerate(prompts)]
    assert len(set(together)) == len(prompts)


def test_a_text_ends_where_the_context_does(store: Store) -> None:
    save_model(store, "model", "run.sequence_length=16")
    model, _ = load_model(store, "model")
    short, long = "abc", "abcdefghijkl"  # with the separator 4 and 13 tokens: 12 and 3 may follow
    counted = [len(model.prompts.read(text).ids) for text in (short, long)]
    assert counted == [4, 13]
    drawn = list(model.continuations([model.prompts.read(long)], 100, 0.0, 1.0, 0))
    assert 1 <= len(drawn) <= 3
    assert texts(model, [short, long], 100) == [texts(model, [short], 100)[0], texts(model, [long], 100, seed=1)[0]]


def test_sentinels_come_by_their_names() -> None:
    spelling = Spelling(byte_tokenizer(), {300: "<extra_id_0>"})
    tokens = byte_tokenizer().encode("aä").ids
    assert [spelling.piece(token) for token in (300, *tokens, 300)] == ["<extra_id_0>", "a", "", "ä", "<extra_id_0>"]
    assert spelling.piece(SEPARATOR) == "<|endoftext|>"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}")))
def test_pieces_are_whole_characters_and_nothing_is_lost(text: str) -> None:
    spelling = Spelling(byte_tokenizer(), {})
    pieces = [spelling.piece(token) for token in byte_tokenizer().encode(text).ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + spelling.rest() == text


def test_a_character_that_is_not_whole_at_the_end_is_marked() -> None:
    spelling = Spelling(byte_tokenizer(), {})
    assert spelling.piece(byte_tokenizer().encode("ä").ids[0]) == ""
    assert spelling.rest() == "\N{REPLACEMENT CHARACTER}"
