"""What this machine's matrix multiplication can do at best: the 100 % of the MFU that we show."""

import time
from collections.abc import Callable

import torch

from bushcraft.model.precision import multiplies_bf16

SIZE = 1024
SECONDS = 0.25
SECONDS_AGAIN = 0.03
"""Of a later measurement: a few products, at least one."""
SHARE = 0.003
"""Of a run's time, for later measurements."""


def matmul_peak(precision: str, size: int = SIZE, seconds: float = SECONDS) -> float:
    """FLOP/s of the fastest of several square products of `size`, with torch's present thread count.

    `precision`: "fp32" or "bf16", which is fp32 where the CPU has no bf16 products, as in the model. The fastest,
    because other processes only ever slow a product down. torch's own random numbers are left alone.
    """
    in_bf16 = precision == "bf16" and multiplies_bf16(torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=random).to(torch.bfloat16 if in_bf16 else torch.float32) for _ in range(2)
    )
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class MatmulPeak:
    """The highest rate seen so far. A machine that is busy at the start of a run shows too little of itself."""

    def __init__(
        self,
        precision: str,
        measure: Callable[[str, float], float] = lambda precision, seconds: matmul_peak(precision, seconds=seconds),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measure`: FLOP/s, from a precision and the seconds to take for it."""
        self._precision, self._measure, self._now = precision, measure, now
        self.flops = measure(precision, SECONDS)
        """FLOP/s."""
        self._began = now()
        self._spent, self._cost = 0.0, SECONDS_AGAIN + 2 * SIZE**3 / self.flops

    def look_again(self) -> None:
        """Measure again, if all that was spent on it since the start stays below `SHARE` of the time."""
        began = self._now()
        if self._spent + self._cost > SHARE * (began - self._began):
            return
        self.flops = max(self.flops, self._measure(self._precision, SECONDS_AGAIN))
        self._cost = self._now() - began
        self._spent += self._cost


def fastest_precision() -> str:
    """ "bf16" where the CPU has instructions for it (AMX, AVX-512-BF16), else "fp32".

    Asked of the processor, not measured: a busy machine must not choose the arithmetic of a whole run.
    """
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"
