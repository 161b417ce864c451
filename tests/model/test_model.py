"""The layers are what their papers say, and the hand-written backward passes are their derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.cross_entropy import cross_entropy
from bushcraft.model.flops import forward_flops, training_flops
from bushcraft.model.fused import GeGLUFunction, ReLU2Function, RMSNormFunction, RotaryFunction, SwiGLUFunction
from bushcraft.model.initialise import initialise, normal_slice
from bushcraft.model.layers import rotary_angles
from bushcraft.model.precision import compute_precision, linear
from bushcraft.model.transformer import Decoder

SMALL = ModelConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)


def segments_from(lengths_by_row: list[list[int]]) -> Segments:
    rows = [(r, sum(lengths[:i]), 0, n) for r, lengths in enumerate(lengths_by_row) for i, n in enumerate(lengths)]
    row, start, prefix, length = torch.tensor(rows, dtype=torch.int32).T
    return Segments(row=row, start=start, prefix_length=prefix, length=length)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_are_one_graph_for_all_segmentations(precision: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, plain = Decoder(SMALL), Decoder(SMALL)
    initialise(model, 0)
    _open_residual(model)
    plain.load_state_dict(model.state_dict())
    model.compile_layers(backend="aot_eager")
    tokens = torch.randint(97, (2, 12))
    for lengths in ([[5, 7], [12]], [[12], [1, 2, 9]], [[3, 3, 3, 3], [4, 8]]):
        with compute_precision(precision):
            ours, reference = (m(tokens, segments_from(lengths)) for m in (model, plain))
        torch.testing.assert_close(ours, reference)
        ours.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 3, 4, 8)])
def test_hand_written_backwards_are_derivatives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(*shape[:-2], 1, 4, dtype=torch.float64)
    torch.autograd.gradcheck(SwiGLUFunction.apply, (x, y))
    torch.autograd.gradcheck(GeGLUFunction.apply, (x, y))
    torch.autograd.gradcheck(ReLU2Function.apply, (x,))
    torch.autograd.gradcheck(lambda x: RotaryFunction.apply(x, angle.cos(), angle.sin()), (x,))
    x32, w32 = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    ours = torch.autograd.grad(RMSNormFunction.apply(x32, w32, 1e-6, x32.dtype), (x32, w32), y.detach().float())
    plain = torch.autograd.grad(torch.nn.functional.rms_norm(x32, (8,), w32, 1e-6), (x32, w32), y.detach().float())
    torch.testing.assert_close(ours, plain)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 16).expand(1, 9, 1, 16), torch.randn(1, 1, 1, 16).expand(1, 9, 1, 16)
    angles = rotary_angles(torch.arange(9)[None], 16, 10_000.0)
    scores = torch.einsum("bqhe,bkhe->qk", RotaryFunction.apply(q, *angles), RotaryFunction.apply(k, *angles))
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])


@pytest.mark.parametrize("chunk", [97, 97 * 3, 1 << 21])
def test_cross_entropy_is_the_plain_formula(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.model.cross_entropy.CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    h, w = torch.randn(10, 16, requires_grad=True), torch.randn(97, 16, requires_grad=True)
    targets, weights = torch.randint(97, (10,)), torch.rand(10)
    nll, z = cross_entropy(h, w, targets, weights, 0.1)
    ours = torch.autograd.grad((nll + z) / 3, (h, w))
    logits = h @ w.T
    plain_nll = weights @ torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    plain_z = 0.1 * weights @ logits.logsumexp(1).square()
    torch.testing.assert_close((nll, z), (plain_nll, plain_z))
    torch.testing.assert_close(ours, torch.autograd.grad((plain_nll + plain_z) / 3, (h, w)))


def test_cross_entropy_without_gradients_is_the_same() -> None:
    torch.manual_seed(0)
    h, w = torch.randn(10, 16, requires_grad=True), torch.randn(97, 16)
    inputs = (h, w, torch.randint(97, (10,)), torch.rand(10), 0.1)
    with torch.no_grad():
        scored = cross_entropy(*inputs)
    assert scored == cross_entropy(*inputs)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_cross_entropy_survives_large_logits(offset: float) -> None:
    h = torch.tensor([[100.0, offset], [0.0, offset]])
    w = torch.stack([torch.arange(97.0), torch.ones(97)], dim=1)
    targets = torch.tensor([96, 5])
    nll, _ = cross_entropy(h, w, targets, torch.ones(2))
    torch.testing.assert_close(nll, torch.tensor(97.0).log(), rtol=0, atol=2e-3)  # fp32 has 1e-3 at 1e4


@pytest.mark.parametrize("qk_norm", [True, False])
def test_bf16_units_and_their_emulation_train_alike(qk_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    segments, tokens = segments_from([[5, 7], [12]]), torch.randint(97, (2, 12))
    gradients = []
    for has_units in (True, False):
        monkeypatch.setattr("bushcraft.model.precision.multiplies_bf16", lambda _, it=has_units: it)
        model = Decoder(SMALL.model_copy(update={"qk_norm": qk_norm}))
        initialise(model, 0)
        torch.manual_seed(0)
        _open_residual(model)
        with compute_precision("bf16"):
            h = model(tokens, segments)
            nll, _ = cross_entropy(h.flatten(0, 1), model.unembedding_VD, tokens.flatten(), torch.ones(24))
        nll.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize(("has_units", "rounding"), [(True, 2**-8), (False, 0.0)])
def test_bf16_cross_entropy_rounds_the_factors_of_the_logits_and_units_round_the_logits(
    has_units: bool, rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("bushcraft.model.precision.multiplies_bf16", lambda _: has_units)
    h, w = torch.randn(10, 64), torch.randn(97, 64)
    targets, weights = torch.randint(97, (10,)), torch.rand(10)
    with compute_precision("bf16"), torch.no_grad():
        nll, _ = cross_entropy(h, w, targets, weights)
    logits = h.bfloat16().double() @ w.bfloat16().double().T
    expected = weights.double() @ torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    error = 2 * rounding * float(weights.sum() * logits.abs().max())
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=error)


def test_bf16_linear_has_the_numbers_of_a_bf16_product() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(5, 64, requires_grad=True), torch.randn(32, 64, requires_grad=True)
    with compute_precision("bf16"):
        out = linear(x, w)
    exact = torch.nn.functional.linear(x.bfloat16().double(), w.bfloat16().double())
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=1e-3)
    assert torch.autograd.grad(out.float().sum(), w)[0].dtype == torch.float32


def test_documents_in_a_row_do_not_see_each_other() -> None:
    model = Decoder(SMALL)
    initialise(model, 0)
    _open_residual(model)
    tokens = torch.randint(97, (1, 12))
    packed = model(tokens, segments_from([[5, 7]]))
    alone = model(tokens[:, 5:], segments_from([[7]]))
    torch.testing.assert_close(packed[:, 5:], alone)


def test_no_position_sees_what_follows() -> None:
    model = Decoder(SMALL)
    initialise(model, 0)
    _open_residual(model)
    tokens = torch.randint(97, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 97
    before, after = (model(t, segments_from([[12]])) for t in (tokens, changed))
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@given(begin=st.integers(0, 999), length=st.integers(0, 200), seed=st.integers(0, 2**63 - 1))
def test_any_slice_of_the_initial_weights_is_the_same_slice_of_the_whole(begin: int, length: int, seed: int) -> None:
    end = min(1000, begin + length)
    whole = normal_slice(seed, "layers.0.mlp.up.weight", 0, 1000)
    assert (normal_slice(seed, "layers.0.mlp.up.weight", begin, end) == whole[begin:end]).all()


def test_initial_weights_are_normal_and_follow_seed_and_name() -> None:
    a, b, c = (normal_slice(seed, name, 0, 100_000) for seed, name in [(0, "a"), (1, "a"), (0, "b")])
    assert abs(a.mean()) < 0.02
    assert abs(a.std() - 1) < 0.02
    assert abs((a * b).mean()) < 0.02
    assert abs((a * c).mean()) < 0.02


def test_flops_are_those_that_a_counter_counts() -> None:
    model = Decoder(SMALL)
    initialise(model, 0)
    segments = segments_from([[6, 10], [16]])

    def by_onednn(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        return 2 * x.numel() * weight[0]

    mapping = {torch.ops.bushcraft.product: by_onednn}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        h = model(torch.randint(97, (2, 16)), segments)
        (h @ model.unembedding_VD.T).sum()
    lengths = [6, 10, 16]
    scores = sum(n * (n + 1) // 2 for n in lengths) * 4 * SMALL.n_heads * SMALL.head_width * SMALL.n_layers
    assert forward_flops(SMALL, segments) == counter.get_total_flops() + scores  # our operator is opaque to it
    assert training_flops(SMALL, segments) == 3 * forward_flops(SMALL, segments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_kv_heads": 3}, "use 1, 2 or 4"),
        ({"n_heads": 5, "n_kv_heads": 5}, "does not divide model.d_model = 32"),
        ({"head_dim": 7}, "use model.head_dim = 6 or 8"),
        ({"n_layers": 0}, "greater than 0"),
    ],
)
def test_shape_that_cannot_work_says_which_would(change: dict[str, int], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ModelConfig(**{**SMALL.model_dump(), **change})


def _open_residual(model: Decoder) -> None:
    """Projections into the residual stream begin at zero, which would hide what attention does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.normal_(std=0.3)
