"""A prompt is what the objective shows in training, and what cannot be one is told."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bushcraft.errors import DataError
from bushcraft.objectives.objective import UL2, Objective, Prefix, SpanCorruption
from bushcraft.objectives.special import MODES, SpecialTokens, special_tokens
from bushcraft.objectives.texts import Texts
from bushcraft.train.objective_config import ObjectiveConfig
from bushcraft.train.prompt import Form, PromptReader
from tests.train.saved_model import N_BYTES, SEPARATOR, byte_tokenizer

S0, S1, NLU, S2S = N_BYTES, N_BYTES + 1, N_BYTES + 3, N_BYTES + 4
CONTEXT = 20


def special(kind: str) -> SpecialTokens:
    modes = MODES["released"] if kind.startswith("ul2") else ()
    return special_tokens({}, N_BYTES, SEPARATOR, 3 if modes or kind == "span_corruption" else 0, modes)


def reader(kind: str, has_encoder: bool = False, context: int = CONTEXT, **objective: object) -> PromptReader:
    tokenizer = byte_tokenizer()
    tokenizer.encode_special_tokens = True
    config = ObjectiveConfig(kind=kind, **objective)
    return PromptReader(tokenizer, SEPARATOR, special(kind), Form.of(config), context, has_encoder)


def encoded(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text).ids
    return ids


@pytest.mark.parametrize(
    ("kind", "text", "expected", "is_prefix"),
    [
        ("causal", "ab", [SEPARATOR, "ab"], False),
        ("causal", "", [SEPARATOR], False),
        ("prefix", "ab", [SEPARATOR, "ab"], True),
        ("sft", "ab", [SEPARATOR, "ab"], True),
        ("span_corruption", "ab", ["ab", S0, SEPARATOR], True),
        ("span_corruption", "a<extra_id_0>b<extra_id_1>", ["a", S0, "b", S1, SEPARATOR], True),
        ("span_corruption", "", [S0, SEPARATOR], True),
        ("ul2", "ab", [S2S, "ab", S0, SEPARATOR], True),
        ("ul2", "", [S2S, S0, SEPARATOR], True),
        ("ul2", "a<extra_id_0>b", [NLU, "a", S0, "b", SEPARATOR], True),
        ("ul2", "[NLG]a<extra_id_0>", [NLU + 2, "a", S0, SEPARATOR], True),
        ("ul2r", "[NLU]a", [NLU, "a", S0, SEPARATOR], True),
        ("ul2", "a[NLU]", [S2S, "a[NLU]", S0, SEPARATOR], True),
        ("causal", "[NLU]<|endoftext|>", [SEPARATOR, "[NLU]<", "|endoftext|>"], False),
    ],
)
def test_prompts_have_the_form_of_their_objective(
    kind: str, text: str, expected: list[str | int], is_prefix: bool
) -> None:
    prompt = reader(kind).read(text)
    assert prompt.ids == [t for part in expected for t in (encoded(part) if isinstance(part, str) else [part])]
    assert prompt.is_prefix == is_prefix


def test_prompts_read_in_one_direction_where_the_recipe_says_so() -> None:
    for kind in ("prefix", "span_corruption", "sft"):
        assert not reader(kind, prompts_both_ways=False).read("a").is_prefix


def test_a_mixture_goes_on_with_texts_and_fills_gaps() -> None:
    parts = {"next": {"kind": "causal"}, "gaps": {"kind": "ul2"}}
    model = reader("ul2")
    form = Form.of(ObjectiveConfig.model_validate({"kind": "mixture", "parts": parts}))
    mixed = PromptReader(model.tokenizer, SEPARATOR, model.special, form, CONTEXT, has_encoder=False)
    assert mixed.read("ab").ids == [SEPARATOR, *encoded("ab")]
    assert not mixed.read("ab").is_prefix
    assert mixed.read("[S2S]ab").ids == [S2S, *encoded("ab"), S0, SEPARATOR]
    assert mixed.read("[S2S]ab").is_prefix


def stretches(tokens: list[int], special: set[int]) -> list[list[int]]:
    """Special tokens one by one, others together."""
    found: list[list[int]] = []
    for token in tokens:
        if found and token not in special and found[-1][0] not in special:
            found[-1].append(token)
        else:
            found.append([token])
    return found


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="<["), min_size=4, max_size=40),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("kind", ["prefix", "span_corruption", "ul2"])
def test_what_an_objective_shows_can_be_written_as_a_prompt(kind: str, text: str, seed: int) -> None:
    """Except for a text that is cut within a character, which nobody can write."""
    tokens, names = [SEPARATOR, *encoded(text)], special("ul2" if kind == "ul2" else "span_corruption")
    one = np.array([0])
    texts = Texts(np.array(tokens), np.array([len(tokens)]), one + seed, one, one + SEPARATOR)
    objectives: dict[str, Objective] = {
        "prefix": Prefix(seed),
        "span_corruption": SpanCorruption(names, seed, corruption=0.3),
        "ul2": UL2(names, seed),
    }
    shown = objectives[kind].examples(texts).inputs.tolist()
    ends = (SEPARATOR,) if kind != "prefix" else ()
    inner = [t for t in (shown[1:] if kind == "prefix" else shown) if t not in ends]
    tokenizer = byte_tokenizer()
    written = "".join(
        names.names()[group[0]] if group[0] in names.names() else tokenizer.decode(group, skip_special_tokens=False)
        for group in stretches(inner, set(names.names()))
    )
    assume("\N{REPLACEMENT CHARACTER}" not in written)
    assert reader(kind, context=100, n_sentinels=3).read(written).ids == shown


@pytest.mark.parametrize("kind", ["causal", "prefix", "sft"])
def test_a_sentinel_is_refused_by_a_model_without_them(kind: str) -> None:
    with pytest.raises(DataError, match=r"prompt 'x<extra_id_0>' has <extra_id_0>, but the model was trained without"):
        reader(kind).read("x<extra_id_0>")


def test_a_sentinel_too_many_is_refused() -> None:
    with pytest.raises(DataError, match=r"has <extra_id_3>, but the model has <extra_id_0> to <extra_id_2>"):
        reader("ul2").read("x<extra_id_3>")


def test_a_prompt_and_what_follows_fit_the_context_of_a_decoder() -> None:
    model = reader("causal")
    assert len(model.read("x" * 10, n_tokens=9).ids) == 11
    assert model.room(model.read("x" * 10)) == 9
    with pytest.raises(DataError, match=r"has 11 tokens; with 10 more it is longer than the 20 .* at most 9 tokens"):
        model.read("x" * 10, n_tokens=10)
    with pytest.raises(DataError, match=r"prompt 'x{40}…' has 61 tokens, .* texts of 20. Shorten it by 42 tokens"):
        model.read("x" * 60)
    with pytest.raises(DataError, match=r"has 20 tokens, .* of 20. Shorten it by 1 tokens"):
        model.read("x" * 19)


def test_a_prompt_fits_the_context_of_an_encoder() -> None:
    model = reader("span_corruption", has_encoder=True)
    assert len(model.read("x" * 18, n_tokens=1000).ids) == 20
    assert model.room(model.read("x")) is None
    with pytest.raises(DataError, match=r"has 21 tokens, .* of 20. Shorten it by 1 tokens"):
        model.read("x" * 19)


def test_nothing_is_no_prompt_where_no_token_begins_a_text() -> None:
    model = reader("causal")
    bare = PromptReader(model.tokenizer, None, model.special, model.form, CONTEXT, has_encoder=False)
    assert bare.read("a").ids == encoded("a")
    with pytest.raises(DataError, match="the prompt is empty"):
        bare.read("")
