"""The arithmetic of matrix products: fp32, or bf16 operands with fp32 sums; weights stay in fp32.

Not every CPU multiplies bf16: without AMX or AVX-512-BF16 torch falls into a scalar loop, hundreds of times
slower than fp32. There the operands are rounded to bf16, multiplied in fp32, and the product is rounded:
the numbers that a bf16 unit with fp32 accumulation gives. Attention stays in fp32 there: its kernel is no faster
in bf16, and its backward pass nine times slower.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_precision = "fp32"
"""What `compute_precision` set. A plain name, because a compiler can guard it; it cannot read a context variable."""

SMALL_RESULT = 4096
"""Elements. A smaller result, as when one token is generated at a time, is there sooner than the operator is called."""

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_CPU_MULTIPLIES_BF16 = _HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextlib.contextmanager
def compute_precision(precision: str) -> Iterator[None]:
    """Multiply in "fp32" or "bf16" inside the block."""
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


@contextlib.contextmanager
def assumed_bf16_units() -> Iterator[None]:
    """Take the CPU inside the block for one that multiplies bf16: where it stands for another device."""
    global _CPU_MULTIPLIES_BF16
    before, _CPU_MULTIPLIES_BF16 = _CPU_MULTIPLIES_BF16, True
    try:
        yield
    finally:
        _CPU_MULTIPLIES_BF16 = before


def present_precision() -> str:
    """What the innermost `compute_precision` set."""
    return _precision


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 matrix products of its own."""
    return device.type != "cpu" or _CPU_MULTIPLIES_BF16


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in the present precision; the result has the dtype of `x`'s stream: bf16 under bf16."""
    if _precision == "fp32":
        result: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
        return result
    if multiplies_bf16(x.device):
        return torch.nn.functional.linear(x.bfloat16(), weight.bfloat16())
    product: Tensor = _RoundedLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return product


def operand(x: Tensor) -> Tensor:
    """`x` as a factor of a product in the present precision, for code that multiplies by itself."""
    if _precision == "fp32":
        return x
    return x.bfloat16() if multiplies_bf16(x.device) else rounded(x)


def operand_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products read `x` at present: what makes it casts it once, for all of them."""
    return torch.bfloat16 if _precision == "bf16" and multiplies_bf16(x.device) else x.dtype


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T for two operands, which are to need no gradients.

    In fp32 on a CPU by oneDNN, whose products are a sixth to a third faster there than the MKL that `@` calls
    (measured on an AMD EPYC; decision 9).
    """
    is_small = x.shape[:-1].numel() * len(weight) < SMALL_RESULT
    if _HAS_ONEDNN and x.dtype is torch.float32 and x.device.type == "cpu" and not is_small:
        found: Tensor = onednn_product(x, weight)
        return found
    return torch.nn.functional.linear(x, weight)


@torch.library.custom_op("bushcraft::product", mutates_args=())
def onednn_product(x: Tensor, weight: Tensor) -> Tensor:
    """An operator of our own, because torch's compiler takes oneDNN's for one whose weights never change."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


@onednn_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for two operands, in place where their dtype is that of the fp32 total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def rounded(x: Tensor) -> Tensor:
    """`x` with the precision of bf16 and its own dtype."""
    return x.bfloat16().to(x.dtype)


class _Linear(torch.autograd.Function):
    """A product in fp32, and its two derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return product(d_out, weight.T), d_out.flatten(0, -2).T @ x.flatten(0, -2)


class _RoundedLinear(torch.autograd.Function):
    """A bf16 product on a machine that has none: every operand and result rounded, every sum in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return rounded(torch.nn.functional.linear(x, weight))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d_out = rounded(d_out)
        return rounded(d_out @ weight), d_out.flatten(0, -2).T @ x.flatten(0, -2)
