"""Muon makes the singular values of an update equal, and trains; its state survives saving."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.model.config import ModelConfig
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import Decoder
from bushcraft.parallel.weights import Weight, whole_weights
from bushcraft.train.muon import muon_step, orthogonalised
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import OptimizerConfig

SHAPE = ModelConfig(vocab_size=97, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=64)
MUON = OptimizerConfig(name="muon", learning_rate=1e-2)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(16, 48), (48, 16), (32, 32)]), min_size=1, max_size=5),
    has_units=st.booleans(),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_singular_values_become_nearly_equal_and_vectors_stay(
    shapes: list[tuple[int, int]], has_units: bool, scale: float
) -> None:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bushcraft.train.muon.multiplies_bf16", lambda _: has_units)
        matrices = [scale * torch.randn(shape) for shape in shapes]
        for matrix, found in zip(matrices, orthogonalised(matrices), strict=True):
            assert found.shape == matrix.shape
            assert found.dtype == torch.float32
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            carried = u.T @ found @ vt.T
            large = s > 0.05 * s.norm()  # below, five steps do not lift a value all the way
            assert ((carried.diagonal()[large] > 0.6) & (carried.diagonal()[large] < 1.3)).all()
            assert (carried - carried.diagonal().diag()).abs().max() < 0.1


class Layer(torch.nn.Module):
    axes: ClassVar = {"weight": ("mlp", "embed")}

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(matrix)


def whole_weight(matrix: torch.Tensor) -> Weight:
    return whole_weights(Layer(matrix)).by_name["weight"]


def test_a_zero_gradient_moves_nothing_but_what_decays() -> None:
    weight = whole_weight(torch.ones(4, 8))
    weight.held.grad = torch.zeros(4, 8)
    muon_step([weight], [torch.zeros(4, 8)], None, learning_rate=0.5, weight_decay=0.1, momentum=0.9)
    torch.testing.assert_close(weight.held.data, torch.full((4, 8), 0.95))


def test_step_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, other = (whole_weight(torch.randn(24, 40, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    theirs = other.held
    muon = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    buffer = torch.zeros(24, 40)
    for _ in range(3):
        gradient = torch.randn(24, 40)
        ours.held.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon_step([ours], [buffer], None, learning_rate=0.02, weight_decay=0.1, momentum=0.9)
        muon.step()
    torch.testing.assert_close(
        ours.held.data, theirs.data, rtol=0, atol=2e-3
    )  # steps of about 0.004 an element, in bf16


def test_state_read_back_goes_on_to_the_same_bits() -> None:
    gradients = [torch.randn(sum(p.numel() for p in Decoder(SHAPE).parameters())) for _ in range(4)]

    def model_after(first: int, last: int, saved: tuple[Decoder, Optimizer] | None) -> tuple[Decoder, Optimizer]:
        model = Decoder(SHAPE)
        initialise(model, 0)
        optimizer = Optimizer(whole_weights(model), MUON)
        if saved:
            model.load_state_dict(saved[0].state_dict())
            found = saved[1].parts()
            assert any(name.startswith("momentum/layers.0.attention") for name in found)
            assert "exp_avg/embedding.weight" in found
            for name, part in optimizer.prepare(saved[1].scalars()).items():
                part.tensor.copy_(found[name].tensor)
        for gradient in gradients[first:last]:
            parts = gradient.split([p.numel() for p in model.parameters()])
            for parameter, part in zip(model.parameters(), parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()
            optimizer.step(1e-2)
        return model, optimizer

    straight, _ = model_after(0, 4, None)
    resumed, _ = model_after(2, 4, model_after(0, 2, None))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
