"""An answer ends where it is told to, takes no sentinel along, and follows the end of a context that is too long."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.store.workspace import Store
from bushcraft.train.answers import LEAST_READ, answers, fitted
from bushcraft.train.load_model import load_model
from bushcraft.train.sample import TextModel
from bushcraft.train.scoring import Pair
from tests.train.saved_model import save_model

KINDS = {
    "causal": [],
    "prefix": ["objective.kind=prefix"],
    "ul2": ["objective.kind=ul2"],
    "encoder-decoder-ul2": ["objective.kind=ul2", "model.kind=encoder_decoder"],
    "encoder-decoder-span": ["objective.kind=span_corruption", "model.kind=encoder_decoder"],
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextModel]:
    store = Store.create(tmp_path_factory.mktemp("answers") / "store")
    for name, settings_ in KINDS.items():
        save_model(store, name, *settings_)
    return {name: load_model(store, name)[0] for name in KINDS}


def test_an_answer_is_what_the_model_goes_on_with_up_to_the_string(loaded: dict[str, TextModel]) -> None:
    model = loaded["causal"]
    whole = "".join(model.continuation("number 3", 20, 0.0, 1.0, 0))
    stop = whole[5:7]
    assert answers(model, ["number 3"], 20) == [whole]
    assert answers(model, ["number 3"], 20, [stop, ""]) == [whole.split(stop)[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_many_contexts_get_what_each_gets_alone(kind: str, loaded: dict[str, TextModel]) -> None:
    contexts = [f"{'number ' * n}{n}" for n in range(40)]
    together = answers(loaded[kind], contexts, 6, ["e"])
    assert together[::7] == [answers(loaded[kind], [context], 6, ["e"])[0] for context in contexts[::7]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_of_any_length_and_of_any_characters_is_answered(kind: str, loaded: dict[str, TextModel]) -> None:
    contexts = ["", "x" * 5000, "<extra_id_7777><|endoftext|>[S2S]", "\N{PILE OF POO}"]
    assert len(answers(loaded[kind], contexts, 200)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_generation_ends_when_all_answers_have(
    kind: str, loaded: dict[str, TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded[kind]
    names = {name: token for token, name in model.prompts.special.names().items()}
    lead = [names["<extra_id_0>"]] if "ul2" in kind or "span" in kind else []
    scripts = [[*lead, *b"yes\nno"], [*lead, *b"no", next(iter(model.stops))]]
    if lead:
        scripts[0] = [*lead, *b"yes", names["<extra_id_1>"], *b"no"]
    asked = []

    def scripted(_: object, __: object, n_tokens: int, *___: object) -> Iterator[list[int | None]]:
        for step in range(n_tokens):
            asked.append(step)
            rows = [script[step] if step < len(script) else None for script in scripts]
            yield [None if token is None else _of_byte(model, token) for token in rows]

    monkeypatch.setattr("bushcraft.train.answers.generate", scripted)
    assert answers(model, ["a", "b"], 50, ["\n"]) == ["yes", "no"]
    assert len(asked) == len(lead) + 4


def _of_byte(model: TextModel, token: int) -> int:
    """The token of a byte; other tokens as they are."""
    return model.prompts.ids_of(chr(token))[0] if token < 128 else token


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), length=st.integers(0, 300), n_more=st.integers(0, 80))
def test_a_context_loses_its_beginning_only(kind: str, length: int, n_more: int, loaded: dict[str, TextModel]) -> None:
    model = loaded[kind]
    reader = model.prompts
    begin = [] if reader.begin is None else [reader.begin]
    whole = reader.pair([*begin, *(n % 100 for n in range(length))], [1])
    read = fitted(model, whole, n_more).read
    room = max(LEAST_READ, reader.context - (0 if reader.has_encoder else n_more))
    assert len(read) == min(room, len(whole.read))
    assert read[0] == whole.read[0] or kind == "encoder-decoder-span"
    assert list(read[1:]) == list(whole.read[len(whole.read) - len(read) + 1 :])


def test_an_empty_context_is_the_token_that_begins_texts(loaded: dict[str, TextModel]) -> None:
    model = loaded["causal"]
    assert fitted(model, Pair([], [1]), 1).read == [model.start]
