"""On CUDA attention is the dense formula in float64, forwards and backwards, by the kernels that `attend` chooses."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bushcraft.model.attention import Mask, attend
from tests.model.attention_cases import Case, cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

CAUSAL = [[row, start, 256, row, start, 256, 1] for row in (0, 1) for start in (0, 256)]
PREFIX = [[0, 0, 200, 0, 0, 200, 0], [0, 200, 312, 0, 0, 512, 1], [1, 5, 90, 1, 5, 90, 0], [1, 95, 300, 1, 5, 390, 1]]
CROSS = [[0, 0, 100, 1, 7, 300, 0], [0, 100, 400, 0, 0, 512, 0], [1, 3, 70, 1, 307, 205, 0]]
KINDS = {"causal": CAUSAL, "prefix": PREFIX, "cross": CROSS}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    """A function is compiled for a few shapes at most: other tests must not use them up."""
    torch._dynamo.reset()


def check(case: Case, dtype: torch.dtype, width: int = 64, compiled: bool = False) -> None:
    inputs = case.inputs(dtype, width, device="cuda")
    function = torch.compile(attend, fullgraph=True, dynamic=False) if compiled else attend
    out = function(*inputs, case.mask, case.scale, case.soft_cap)
    direction = torch.randn(out.shape).to(out)
    ours = [out, *torch.autograd.grad(out, inputs, direction)]
    for found, expected in zip(ours, case.reference(inputs, direction), strict=True):
        assert_near(found, expected, 2e-2 if dtype is torch.bfloat16 else 1e-4)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.isfinite().all()
    assert (found.double() - expected).norm() <= tolerance * (expected.norm() + 1e-1)


def case_of(kind: str, window: int | None, soft_cap: float | None) -> Case:
    return Case(Mask(torch.tensor(KINDS[kind]), window), (2, 512), (2, 512), 2, 0.2, soft_cap)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_flash_kernels_in_bf16(kind: str, window: int | None, compiled: bool) -> None:
    check(case_of(kind, window, None), torch.bfloat16, compiled=compiled)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_flex_attention_in_fp32(kind: str, window: int | None, soft_cap: float | None) -> None:
    check(case_of(kind, window, soft_cap), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_in_bf16_with_a_soft_cap(kind: str, window: int | None, compiled: bool) -> None:
    check(case_of(kind, window, 5.0), torch.bfloat16, compiled=compiled)


@settings(max_examples=150, deadline=None)
@given(case=cases(longest=200, soft_caps=False).filter(lambda case: case.queries[1] > 0))
def test_the_flash_kernels_over_random_masks(case: Case) -> None:
    check(case, torch.bfloat16)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(case=cases(longest=200).filter(lambda case: case.queries[1] > 0))
def test_flex_attention_over_random_masks_of_odd_lengths(case: Case) -> None:
    check(dataclasses.replace(case, soft_cap=5.0), torch.float32, width=32)


@pytest.mark.parametrize("width", [16, 128, 256])
def test_heads_of_other_widths(width: int) -> None:
    check(case_of("prefix", None, None), torch.bfloat16, width)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_no_keys_at_all_give_zeros(soft_cap: float | None) -> None:
    case = Case(Mask(torch.zeros(0, 7, dtype=torch.int64)), (2, 5), (2, 0), 2, None, soft_cap)
    check(case, torch.bfloat16)
