"""What this machine's matrix multiplication can do at best: the 100 % of the MFU that we show."""

import time

import torch

SIZE = 1024
SECONDS = 0.25


def matmul_peak(precision: str, size: int = SIZE, seconds: float = SECONDS) -> float:
    """FLOP/s of the fastest of several square products of `size`, with torch's present thread count.

    `precision`: "fp32" or "bf16". The fastest, because other processes only ever slow a product down.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def fastest_precision() -> str:
    """ "bf16" where the CPU has instructions for it (AMX, AVX-512-BF16), else "fp32".

    Asked of the processor, not measured: a busy machine must not choose the arithmetic of a whole run.
    """
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"
