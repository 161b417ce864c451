"""An encoder-decoder is two stacks of the same layers, and its numbers are counted exactly."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.cross_entropy import cross_entropy
from bushcraft.model.flops import forward_flops
from bushcraft.model.initialise import initialise
from bushcraft.model.packed import Packed
from bushcraft.model.parameter_count import parameter_count
from bushcraft.model.transformer import EncoderDecoder, build_model

SMALL = ModelConfig(
    kind="encoder_decoder", vocab_size=97, d_model=32, n_layers=2, n_encoder_layers=3, n_heads=4, n_kv_heads=2, d_ff=64
)


def one_row(lengths: list[int]) -> Segments:
    length = torch.tensor(lengths, dtype=torch.int32)
    zeros = torch.zeros_like(length)
    return Segments(row=zeros, start=(length.cumsum(0) - length).int(), prefix_length=zeros, length=length)


def opened(config: ModelConfig) -> EncoderDecoder:
    """With projections into the residual stream, which begin at zero, that let every layer be seen."""
    model = build_model(config)
    assert isinstance(model, EncoderDecoder)
    initialise(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.normal_(std=0.3)
    return model


def read(model: EncoderDecoder, inputs: Tensor, n_in: list[int], tokens: Tensor, n_out: list[int]) -> Tensor:
    hidden: Tensor = model(tokens[None], one_row(n_out), Packed(inputs[None], one_row(n_in)))
    return hidden[0]


def test_each_segment_reads_its_own_segment_of_the_encoder_and_no_other() -> None:
    model = opened(SMALL)
    inputs, tokens = torch.randint(97, (12,)), torch.randint(97, (9,))
    packed = read(model, inputs, [5, 7], tokens, [6, 3])
    torch.testing.assert_close(packed[:6], read(model, inputs[:5], [5], tokens[:6], [6]))
    torch.testing.assert_close(packed[6:], read(model, inputs[5:], [7], tokens[6:], [3]))
    inputs[11] = (inputs[11] + 1) % 97
    changed = read(model, inputs, [5, 7], tokens, [6, 3])
    assert not torch.isclose(changed[6:], packed[6:]).all(1).any()  # read both ways: every position sees the last
    assert torch.equal(changed[:6], packed[:6])


def test_the_decoder_does_not_see_what_follows() -> None:
    model = opened(SMALL)
    inputs, tokens = torch.randint(97, (4,)), torch.randint(97, (9,))
    before = read(model, inputs, [4], tokens, [9])
    tokens[5] = (tokens[5] + 1) % 97
    after = read(model, inputs, [4], tokens, [9])
    torch.testing.assert_close(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:])


def test_a_windowed_layer_of_the_encoder_sees_so_many_on_either_side() -> None:
    config = SMALL.model_copy(update={"window": 2, "full_layer_every": 100, "n_encoder_layers": 1})
    model = opened(config)
    inputs = torch.randint(97, (11,))
    before = model.encode(Packed(inputs[None], one_row([11])))[0]
    inputs[5] = (inputs[5] + 1) % 97
    after = model.encode(Packed(inputs[None], one_row([11])))[0]
    changed = (~torch.isclose(before, after).all(1)).nonzero()[:, 0].tolist()
    assert changed == [3, 4, 5, 6, 7]


def test_compiled_stacks_are_one_graph_each_for_rows_of_any_length() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, plain = opened(SMALL), opened(SMALL)
    plain.load_state_dict(model.state_dict())
    model.compile_layers(backend="aot_eager", varying_length=True)
    sides = (([5, 7], [6, 3]), ([3, 9], [4, 5]), ([1, 2, 9], [3, 3, 3]), ([4, 4], [8, 9]), ([28, 2], [6, 5]))
    for n_in, n_out in sides:
        inputs, tokens = torch.randint(97, (sum(n_in),)), torch.randint(97, (sum(n_out),))
        ours, eager = (read(m, inputs, n_in, tokens, n_out) for m in (model, plain))
        torch.testing.assert_close(ours, eager)
        ours.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


SHAPES = [
    {"kind": kind, "tie_embeddings": tied, "share_embeddings": shared, "qk_norm": normed, "post_norm": post, "mlp": mlp}
    for kind, tied, shared, normed, post, mlp in product(
        ("decoder", "encoder_decoder"), (True, False), (True, False), (True, False), (True, False), ("swiglu", "relu2")
    )
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_parameter_count_is_exact(shape: dict[str, object]) -> None:
    n_encoder_layers = 3 if shape["kind"] == "encoder_decoder" else None
    config = ModelConfig(**{**SMALL.model_dump(), **shape, "n_encoder_layers": n_encoder_layers})
    with torch.device("meta"):
        model = build_model(config)
    assert parameter_count(config).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("window", [None, 3])
def test_flops_are_those_that_a_counter_counts(window: int | None) -> None:
    config = SMALL.model_copy(update={"window": window})
    model = opened(config)
    n_in, n_out = [6, 10], [9, 4]

    def by_onednn(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        return 2 * x.numel() * weight[0]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.bushcraft.product: by_onednn}) as counter:
        h = read(model, torch.randint(97, (16,)), n_in, torch.randint(97, (13,)), n_out)
        (h @ model.unembedding_VD.T).sum()
    both_ways = sum(n * n for n in n_in)
    causal = sum(n * (n + 1) // 2 for n in n_out)
    across = sum(t * n for t, n in zip(n_in, n_out, strict=True))
    scores = 3 * both_ways + 2 * (causal + across)
    if window:  # the first and the third layer are windowed
        near = sum(abs(a - b) <= window for n in n_in for a in range(n) for b in range(n))
        past = sum(0 <= a - b < window for n in n_out for a in range(n) for b in range(n))
        scores = 2 * near + both_ways + past + causal + 2 * across
    attention = scores * 4 * config.n_heads * config.head_width  # our operator is opaque to the counter
    assert forward_flops(config, one_row(n_out), one_row(n_in)) == counter.get_total_flops() + attention


def test_soft_capped_loss_and_gradients_are_those_of_plain_autograd() -> None:
    torch.manual_seed(0)
    h, w = torch.randn(13, 8, requires_grad=True), (3 * torch.randn(29, 8)).requires_grad_()
    targets, weights = torch.randint(29, (13,)), torch.rand(13)
    nll, z = cross_entropy(h, w, targets, weights, 1e-2, soft_cap=4.0)
    logits = 4 * torch.tanh(h @ w.T / 4)
    plain = (weights * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).sum()
    plain_z = 1e-2 * (weights * logits.logsumexp(1).square()).sum()
    torch.testing.assert_close(nll + z, plain + plain_z)
    ours = torch.autograd.grad(nll + z, (h, w))
    torch.testing.assert_close(ours, torch.autograd.grad(plain + plain_z, (h, w)))
