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
    """ "bf16" where the machine computes it clearly faster than fp32, else "fp32"."""
    # 128: a machine without bf16 instructions takes seconds for a product of 1024.
    return "bf16" if matmul_peak("bf16", 128, 0.02) > 1.2 * matmul_peak("fp32", 128, 0.02) else "fp32"
