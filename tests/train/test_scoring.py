"""The score of a pair is what the model says of it alone, and a document's windows score each of its bytes once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.initialise import initialise
from bushcraft.model.packed import Packed
from bushcraft.model.transformer import Decoder, Model, build_model
from bushcraft.objectives.special import MODES, special_tokens
from bushcraft.train.heldout import windows
from bushcraft.train.prompt import Form, PromptReader
from bushcraft.train.scoring import Pair, score_pairs

SMALL = ModelConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)
START = 0


def opened(config: ModelConfig) -> Model:
    model = build_model(config)
    initialise(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.normal_(std=0.3)
    return model


def one(length: int, prefix: int = 0) -> Segments:
    row, length_ = torch.zeros(1, dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
    return Segments(row=row, start=row, prefix_length=torch.tensor([prefix], dtype=torch.int32), length=length_)


@torch.no_grad()
def plainly(model: Model, pair: Pair) -> tuple[float, bool]:
    """The same without packing, chunks or weights."""
    answer = [*pair.lead, *pair.predicted]
    if isinstance(model, Decoder):
        text = torch.tensor([[*pair.read, *answer]])
        prefix = len(pair.read) if pair.both_ways else 0
        h = model(text[:, :-1], one(text.shape[1] - 1, prefix))[0, -len(pair.predicted) :]
    else:
        read = Packed(torch.tensor([list(pair.read)]), one(len(pair.read)))
        h = model(torch.tensor([[START, *answer[:-1]]]), one(len(answer)), read)[0, -len(pair.predicted) :]
    logits = h @ model.unembedding_VD.T
    if model.config.logit_soft_cap:
        logits = model.config.logit_soft_cap * torch.tanh(logits / model.config.logit_soft_cap)
    targets = torch.tensor(list(pair.predicted))
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return float(nats), bool((logits.argmax(1) == targets).all())


@pytest.mark.parametrize("change", [{}, {"logit_soft_cap": 2.0}, {"kind": "encoder_decoder"}], ids=str)
def test_many_pairs_at_once_get_what_each_gets_alone(change: dict[str, object]) -> None:
    model = opened(ModelConfig(**{**SMALL.model_dump(), **change}))
    torch.manual_seed(1)
    pairs = []
    for n in range(1, 30):
        tokens = torch.randint(1, 97, (3 * n,)).tolist()
        pairs.append(Pair(tokens[:n], tokens[n:], lead=(5,) * (n % 2), both_ways=n % 3 == 0))
    greedy = score_pairs(model, pairs, START)
    for pair, found in zip(pairs, greedy, strict=True):
        nats, is_greedy = plainly(model, pair)
        assert abs(found.nats - nats) < 1e-3
        assert found.is_greedy == is_greedy


def test_what_greedy_generation_gives_is_greedy() -> None:
    model = opened(SMALL)
    tokens = [3, 4]
    for _ in range(4):
        h = model(torch.tensor([tokens]), one(len(tokens)))[0, -1]
        tokens.append(int((h @ model.unembedding_VD.T).argmax()))
    right, wrong = Pair(tokens[:2], tokens[2:]), Pair(tokens[:2], [*tokens[2:-1], (tokens[-1] + 1) % 97])
    assert [score.is_greedy for score in score_pairs(model, [right, wrong], START)] == [True, False]


FORMS = {"causal": Form(), "prefix": Form(is_prefix=True), "gaps": Form(continues=False, gaps_are_prefixes=True)}


@settings(max_examples=80, deadline=None)
@given(length=st.integers(0, 200), context=st.integers(4, 60), form=st.sampled_from(sorted(FORMS)))
def test_windows_predict_each_token_of_a_document_once(length: int, context: int, form: str) -> None:
    special = special_tokens({}, 1000, START, 4, MODES["paper"])
    reader = PromptReader(None, START, special, FORMS[form], context, has_encoder=False)  # type: ignore[arg-type]
    document = [START, *range(1, length + 1)]
    pairs = list(windows(document, reader))
    assert [token for pair in pairs for token in pair.predicted] == [*document[1:], START]
    for pair in pairs:
        if form == "gaps":
            assert pair.read[0] == special.modes[1]
            assert list(pair.read[-2:]) == [special.sentinels[0], START]
            assert pair.lead == (special.sentinels[0],)
        else:
            assert 1 <= len(pair.read) <= max(1, context // 2)
            assert pair.read[-1] + 1 == pair.predicted[0] or pair.predicted[0] == START
