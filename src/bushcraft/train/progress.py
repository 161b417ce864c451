"""What a person sees while a run trains: one live line on a terminal, a plain line now and then elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:  # torch takes seconds to import, and `run show` needs no more than `clock`
    from bushcraft.train.peak import MatmulPeak

PLAIN_SECONDS = 10.0
SMOOTHING = 0.9
SMOOTHED = ("loss", "bits_per_byte", "n_tokens", "flops", "seconds", "data_seconds")


@dataclass(frozen=True)
class StepReport:
    """One step, as the line shows it."""

    step: int
    n_steps: int
    loss: float
    """Nats a token."""
    bits_per_byte: float
    n_tokens: int
    flops: float
    seconds: float
    """Of the whole step, the wait for data included."""
    data_seconds: float
    """Of which waiting for data."""


class Progress:
    """The live line; `peak` is what its MFU is a share of."""

    def __init__(self, console: Console, peak: "MatmulPeak") -> None:
        self._console = console
        self._peak = peak
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._shown = 0.0
        self._mean: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False)

    def busy(self, text: str) -> None:
        """What happens now, between steps."""
        if self._live:
            self._live.update(Text(text))

    def step(self, report: StepReport) -> None:
        """Show a step."""
        means = {key: self._smooth(key, getattr(report, key)) for key in SMOOTHED}
        line = self._line(report, means)
        if self._live:
            self._live.update(Text(line))
        elif time.monotonic() - self._shown >= PLAIN_SECONDS or report.step == report.n_steps:
            self._console.print(line, highlight=False, soft_wrap=True)
            self._shown = time.monotonic()

    def _line(self, report: StepReport, means: dict[str, float]) -> str:
        left = (report.n_steps - report.step) * means["seconds"]
        return (
            f"step {report.step}/{report.n_steps}"
            f"  loss {means['loss']:.3f}"
            f"  {means['bits_per_byte']:.3f} bits/byte"
            f"  {means['n_tokens'] / means['seconds']:,.0f} tokens/s"
            f"  {mfu(means['flops'] / means['seconds'], self._peak.flops)}"
            f"  data wait {100 * means['data_seconds'] / means['seconds']:.1f} %"
            f"  ETA {clock(left)}"
        )

    def _smooth(self, key: str, value: float) -> float:
        """Exponential mean without the bias of its start."""
        total = self._mean.get(key, 0.0) * SMOOTHING + value
        weight = self._mean.get(f"{key} weight", 0.0) * SMOOTHING + 1
        self._mean[key], self._mean[f"{key} weight"] = total, weight
        return total / weight


def mfu(rate: float, peak: float) -> str:
    """The share that `rate` has of `peak` (FLOP/s). A rate above it says that the peak was not seen yet."""
    return f"MFU {100 * rate / peak:.0f} %" if rate <= peak else "MFU at most 100 %"


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stdout_console(quiet: bool = False) -> Console:
    """The terminal, or whatever stands in its place."""
    return Console(file=sys.stdout, soft_wrap=True, quiet=quiet)
