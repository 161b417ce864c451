"""What the live line says: means over the last steps, and an MFU that is never above what the machine can do."""

import io
import re
from dataclasses import dataclass, field

import pytest
import torch
from rich.console import Console

from bushcraft.store.workspace import Store
from bushcraft.train import trainer
from bushcraft.train.peak import SECONDS, SHARE, MatmulPeak, matmul_peak
from bushcraft.train.progress import Progress, StepReport
from bushcraft.train.stop import StopRequest
from tests.train.conftest import tiny_session

REPORT = StepReport(
    step=1, n_steps=10, loss=3.0, bits_per_byte=1.5, n_tokens=100, flops=50e9, seconds=1.0, data_seconds=0.1
)


@dataclass
class Machine:
    """A clock, and a matrix product that is as fast as `flops` says and takes `seconds`."""

    flops: float = 100e9
    seconds: float = 0.04
    now: float = 0.0
    measured: list[float] = field(default_factory=list)

    def peak(self) -> MatmulPeak:
        return MatmulPeak("fp32", self._measure, lambda: self.now)

    def _measure(self, _precision: str, seconds: float) -> float:
        self.measured.append(seconds)
        self.now += self.seconds
        return self.flops


def line(peak: MatmulPeak, *reports: StepReport) -> str:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200), peak)
    for report in reports:
        progress._shown = -1e9
        progress.step(report)
    return out.getvalue().splitlines()[-1]


def test_peak_is_the_highest_rate_seen() -> None:
    machine = Machine(flops=40e9)
    peak = machine.peak()
    for flops, best in ((90e9, 90e9), (30e9, 90e9), (95e9, 95e9)):
        machine.flops, machine.now = flops, machine.now + 1000
        peak.look_again()
        assert peak.flops == best


@pytest.mark.parametrize("seconds", [0.01, 0.04, 7.0])
def test_looking_again_after_every_step_costs_less_than_its_share_of_the_time(seconds: float) -> None:
    machine = Machine(seconds=seconds, flops=2 * 1024**3 / seconds)
    peak = machine.peak()
    began = machine.now
    for step in range(1, 30_000):
        machine.now = max(machine.now, began + 0.5 * step)
        peak.look_again()
        assert len(machine.measured[1:]) * seconds <= SHARE * (machine.now - began) + 1e-9
    assert len(machine.measured) > 3
    assert max(machine.measured[1:]) < SECONDS / 5


def test_mfu_is_the_share_of_the_peak() -> None:
    assert "  MFU 50 %  " in line(Machine().peak(), REPORT)


def test_mfu_above_the_peak_is_not_shown_as_a_number() -> None:
    assert "  MFU at most 100 %  " in line(Machine(flops=10e9).peak(), REPORT)


def test_a_short_last_step_changes_no_rate() -> None:
    """A rate is what many steps did over what they took, not what the last one did over what the others took."""
    short = StepReport(**{**vars(REPORT), "n_tokens": 10, "flops": 5e9, "seconds": 0.1, "data_seconds": 0.01})
    told = line(Machine().peak(), REPORT, REPORT, short)
    assert "  100 tokens/s  MFU 50 %  data wait 10.0 %  " in told


def test_a_run_that_began_on_a_busy_machine_shows_its_mfu_of_the_later_peak(
    text_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Freed(MatmulPeak):
        def __init__(self, precision: str) -> None:
            super().__init__(precision, lambda *_: 1.0)

        def look_again(self) -> None:
            self.flops = 1e30

    monkeypatch.setattr(trainer, "MatmulPeak", Freed)
    out = io.StringIO()
    with tiny_session(text_store, "busy") as session:
        trainer.train(session, Console(file=out, width=200), StopRequest())
    shown = re.findall(r"MFU .*? %", out.getvalue())
    assert (shown[0], shown[-1]) == ("MFU at most 100 %", "MFU 0 %")


def test_measuring_leaves_the_random_numbers_of_torch_alone() -> None:
    before = torch.get_rng_state()
    matmul_peak("fp32", size=32, seconds=0.001)
    assert torch.equal(before, torch.get_rng_state())
