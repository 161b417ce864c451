"""Generation with kept keys and values is the whole model, token by token, whatever stands beside a prompt."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.decoding import next_logits
from bushcraft.model.generate import generate
from bushcraft.model.initialise import initialise
from bushcraft.model.packed import Packed
from bushcraft.model.sampling import draw, uniforms
from bushcraft.model.transformer import Decoder, Model, build_model

SMALL = ModelConfig(vocab_size=97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=64)
START = 96
PROMPTS = [[1, 2, 3], [7], [5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 5]]

KINDS = ["causal", "prefix", "encoder_decoder"]
VARIANTS = {
    "plain": {},
    "window": {"window": 4},
    "window of the own token": {"window": 1, "full_layer_every": 3},
    "attention soft cap": {"attention_soft_cap": 0.7},
    "attention scale": {"attention_scale": 0.9},
    "logit soft cap": {"logit_soft_cap": 0.5},
    "scaled embeddings": {"scale_embeddings": True},
    "post norm": {"post_norm": True},
    "untied": {"tie_embeddings": False, "share_embeddings": False, "qk_norm": False},
    "wide heads": {"head_dim": 12, "n_kv_heads": 4, "mlp": "relu2"},
    "all": {"window": 3, "attention_soft_cap": 2.0, "attention_scale": 0.3, "logit_soft_cap": 1.0, "post_norm": True},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def opened(kind: str, **shape: object) -> Model:
    """A model whose projections into the residual stream, which begin at zero, let every layer be seen."""
    architecture = "encoder_decoder" if kind == "encoder_decoder" else "decoder"
    model = build_model(ModelConfig(**{**SMALL.model_dump(), **shape, "kind": architecture}))
    initialise(model, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.normal_(std=0.15)
            elif "embedding" in name:
                parameter.normal_(std=0.3)  # so that logits are of order 1
    return model


def one_segment(length: int, prefix_length: int = 0) -> Segments:
    numbers = (0, 0, prefix_length, length)
    row, start, prefix, length_ = (torch.tensor([n], dtype=torch.int32) for n in numbers)
    return Segments(row=row, start=start, prefix_length=prefix, length=length_)


@torch.no_grad()
def whole_logits(model: Model, kind: str, prompt: Sequence[int], after: Sequence[int]) -> Tensor:
    """Logits (V,) of the token that follows, by the model's own forward pass over one text."""
    if isinstance(model, Decoder):
        tokens = torch.tensor([[*prompt, *after]])
        h_1SD = model(tokens, one_segment(tokens.shape[1], len(prompt) if kind == "prefix" else 0))
    else:
        tokens, encoder = torch.tensor([[START, *after]]), Packed(torch.tensor([prompt]), one_segment(len(prompt)))
        h_1SD = model(tokens, one_segment(tokens.shape[1]), encoder)
    logits_V, cap = model.unembedding_VD @ h_1SD[0, -1], model.config.logit_soft_cap
    return logits_V if cap is None else cap * torch.tanh(logits_V / cap)


def texts(
    model: Model, kind: str, prompts: list[list[int]], n: int, temperature: float = 0, top_p: float = 1, **more: object
) -> list[list[int]]:
    """What `generate` gives each prompt; prompt number i has the seed i, unless `seeds` are given."""
    arguments = {"seeds": list(range(len(prompts))), "are_prefixes": kind == "prefix", "start": START, **more}
    steps = list(generate(model, prompts, n, temperature, top_p, **arguments))
    return [[step[row] for step in steps if step[row] is not None] for row in range(len(prompts))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_has_the_logits_of_the_whole_text(kind: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(kind, **VARIANTS[variant])
    seen: list[Tensor] = []

    def listening(logits_BV: Tensor, *rest: object) -> Tensor:
        seen.append(logits_BV)
        return draw(logits_BV, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("bushcraft.model.generate.draw", listening)
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts(model, kind, PROMPTS, 9), strict=True)):
        assert len(text) == 9
        for step, token in enumerate(text):
            expected = whole_logits(model, kind, prompt, text[:step])
            torch.testing.assert_close(seen[step][row], expected, rtol=0, atol=1e-5)
            assert token == int(expected.argmax())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)])
@settings(max_examples=10, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 95), min_size=1, max_size=9), min_size=1, max_size=6),
    stops=st.sets(st.integers(0, 96), max_size=12),
)
def test_a_prompt_gets_what_it_gets_alone(
    kind: str, temperature: float, top_p: float, prompts: list[list[int]], stops: set[int]
) -> None:
    model = opened(kind, window=5)
    together = texts(model, kind, prompts, 8, temperature, top_p, stops=stops)
    alone = [
        texts(model, kind, [prompt], 8, temperature, top_p, stops=stops, seeds=[seed])[0]
        for seed, prompt in enumerate(prompts)
    ]
    assert together == alone
    for text in together:
        assert not stops & set(text[:-1])
        assert len(text) == 8 or text[-1] in stops


def test_rows_that_have_ended_stop_costing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = opened("causal"), [[n] for n in range(8)]
    whole = texts(model, "causal", prompts, 12)
    sizes: list[int] = []

    def counting(decoding: object, tokens_B: Tensor) -> Tensor:
        sizes.append(len(tokens_B))
        return next_logits(decoding, tokens_B)  # type: ignore[arg-type]

    monkeypatch.setattr("bushcraft.model.generate.next_logits", counting)
    stops = {text[2] for text in whole[:5]}
    texts(model, "causal", prompts, 12, stops=stops)
    assert sizes[0] == 8
    assert sizes[-1] <= 4
    assert sizes == sorted(sizes, reverse=True)
    sizes.clear()
    texts(model, "causal", prompts, 12, stops=set(range(97)))
    assert sizes == []


def test_what_is_drawn_follows_the_seed() -> None:
    model = opened("causal")
    first, second, third = texts(model, "causal", [[1]] * 3, 20, 1.0, 0.9, seeds=[0, 0, 1])
    assert first == second != third


def test_a_longer_text_begins_like_a_shorter_one() -> None:
    model = opened("causal")
    assert texts(model, "causal", [[1]], 30, 1.0)[0][:10] == texts(model, "causal", [[1]], 10, 1.0)[0]


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    logits_V = torch.tensor([2.0, 0.0, 1.0, -1.0])
    uniform_B = (torch.arange(1000).double() + 0.5) / 1000
    drawn = draw(logits_V.expand(1000, 4), 0.5, 1.0, uniform_B).bincount(minlength=4)
    torch.testing.assert_close(drawn / 1000, (logits_V / 0.5).softmax(0), rtol=0, atol=1.1e-3)


@given(
    logits=st.lists(st.integers(-6, 6), min_size=1, max_size=20),
    top_p=st.floats(0.01, 1.0),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_only_the_smallest_set_of_most_probable_tokens_is_drawn_from(
    logits: list[int], top_p: float, temperature: float, uniform: float
) -> None:
    logits_V = torch.tensor(logits, dtype=torch.float32)
    token = int(draw(logits_V[None], temperature, top_p, torch.tensor([uniform], dtype=torch.float64)))
    probability_V = (logits_V.double() / temperature).softmax(0)
    above = float(probability_V[logits_V > logits_V[token]].sum())
    assert above < top_p + 1e-12


@pytest.mark.parametrize("n_tokens", [300, 3000])
def test_a_nucleus_of_any_size_is_whole(n_tokens: int) -> None:
    logits_V = torch.zeros(4000)
    logits_V[:n_tokens] = torch.linspace(20, 20.5, n_tokens)
    drawn = draw(logits_V.expand(4000, 4000), 1.0, 0.9, torch.linspace(0, 1, 4001).double()[:-1])
    probability_V = logits_V.double().softmax(0)
    inside = probability_V[drawn.unique()].sort().values
    assert 0.9 <= float(inside.sum()) < 0.9 + float(inside[0]) + 1e-9


@pytest.mark.parametrize("temperature", [5e-324, 1e-9, 1e300])
def test_extreme_temperatures_are_their_limits(temperature: float) -> None:
    drawn = draw(torch.tensor([[1.0, 3.0, 2.0, 1e30]]), temperature, 0.999, torch.tensor([0.3], dtype=torch.float64))
    assert drawn.tolist() == [3 if temperature < 1 else 1]


def test_numbers_to_draw_by_are_uniform_and_not_those_of_another_seed() -> None:
    numbers = uniforms([0, 1], 10_000)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert abs(float(numbers[0].mean()) - 0.5) < 0.02
    assert abs(float(torch.corrcoef(numbers)[0, 1])) < 0.05


def test_a_last_bit_of_a_logit_moves_no_other_token_into_its_place() -> None:
    """Two tokens change their order of probability with a last bit; 0.25 is far inside of the first one either way."""
    for bit in (-1e-7, 0.0, 1e-7):
        logits_BV = torch.tensor([[1.0, 1.0 + bit, -9.0]])
        assert int(draw(logits_BV, 1.0, 0.99, torch.tensor([0.25], dtype=torch.float64))) == 0
