"""A whole training step (forward, backward, clip, AdamW) beside plain loops around transformers' Llama of the same
shape and weights: one process, and two ranks that share the weights beside FSDP2 as torchtitan uses it.

    .peers/bin/python benchmarks/train_step.py [--quick] [--only-ranks]

Each contender has processes of its own, so that it keeps its own memory as its own program would, and they step in
turn, so that what else the machine does hits them alike. A contender's figure is its median step; the ratio is the
median of the ratios within a round. Every step's seconds are kept in the result.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from train_step_contenders import THREADS, Contender, Program, quiet
from train_step_programs import CPU, SHAPE

from bushcraft.model.parameter_count import parameter_count
from bushcraft.model.precision import multiplies_bf16
from bushcraft.train.peak import matmul_peak

RESULT = Path(__file__).parent / "results" / "train_step.json"
WARMUP_ROUNDS = 2
N_RANKS = 2


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, nothing compiled or written")
    parser.add_argument("--only-ranks", action="store_true", help="measure two ranks, and keep the other rows")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(THREADS)
    quiet()
    rows = []
    for precision, target, mfu_target in (("fp32", 1.1, 0.9), ("bf16", 1.2, 0.55)):
        # A machine without bf16 products needs minutes for what a peer would do with the whole batch.
        slow = precision == "bf16" and not multiplies_bf16(CPU)
        if not options.only_ranks:
            rows += one_process(precision, target, mfu_target, batch_shape(1, quick, slow), quick)
        rows += two_ranks(precision, batch_shape(N_RANKS, quick, slow), quick)
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if not key.endswith("seconds")}, indent=1))
    if not quick:
        write(rows, keep_others=options.only_ranks)


def write(rows: list[dict[str, Any]], keep_others: bool) -> None:
    """The result, with the rows of other claims as they were or without them; each row says when and on which commit
    it was measured."""
    now = provenance()
    known = json.loads(RESULT.read_text()) if keep_others and RESULT.exists() else {**now, "rows": []}
    found = {row["claim"]: {"commit": known["commit"], "date": known["date"], **row} for row in known["rows"]}
    found |= {row["claim"]: {**row, "commit": now["commit"], "date": now["date"]} for row in rows}
    RESULT.write_text(json.dumps({**now, "rows": list(found.values())}, indent=1) + "\n")


def batch_shape(n_ranks: int, quick: bool, slow: bool) -> tuple[int, int]:
    """(rows, positions): at least a row for each rank."""
    if slow:
        return n_ranks, 32
    return (n_ranks, 512 // n_ranks) if quick else (4, 1024)


def one_process(
    precision: str, target: float, mfu_target: float, shape: tuple[int, int], quick: bool
) -> list[dict[str, Any]]:
    """Rows of a step on all cores, and of a compiled one where a compiler is there."""
    compiled = can_compile() and not quick
    us = Program("bushcraft", precision, keep_memory=True)
    them = Program("transformers", precision)
    programs = [us, them, replace(them, keep_memory=True)]
    if compiled:
        programs += [replace(us, compile=True), replace(them, compile=True)]
    contenders, limit = alternate(programs, shape, rounds=2 if quick else 4, precision=precision)
    first, second = contenders[us], contenders[them]
    rows = [
        throughput_row(first, second, precision, target, limit),
        throughput_row(first, contenders[programs[2]], f"{precision}, both keep memory", None, limit),
        mfu_row(first, second, precision, mfu_target, limit),
    ]
    if compiled:
        pair = contenders[programs[3]], contenders[programs[4]]
        rows.append(throughput_row(pair[0], second, f"{precision}, ours compiled", None, limit))
        rows.append(throughput_row(*pair, f"{precision}, both compiled", None, limit))
        rows.append(mfu_row(pair[0], pair[1], f"{precision}, both compiled", mfu_target, limit))
    return rows


def two_ranks(precision: str, shape: tuple[int, int], quick: bool) -> list[dict[str, Any]]:
    """Rows of a step by two ranks on one machine, which talk by gloo and share its cores: a thread for each."""
    us = Program("bushcraft", precision, keep_memory=True, n_ranks=N_RANKS)
    them = replace(us, who="FSDP2", keep_memory=False)
    programs = [us, them, replace(them, keep_memory=True)]
    contenders, limit = alternate(programs, shape, rounds=2 if quick else 6, precision=precision)
    first, second, third = contenders.values()
    what = f"{precision}, {N_RANKS} ranks that share the weights"
    return [
        throughput_row(first, second, what, 1.0, limit),
        throughput_row(first, third, f"{what}, both keep memory", None, limit),
        processor_row(first, second, what),
        processor_row(first, third, f"{what}, both keep memory"),
    ]


def alternate(
    programs: list[Program], shape: tuple[int, int], rounds: int, precision: str
) -> tuple[dict[Program, Contender], float]:
    """Step each in turn, twice unmeasured and then `rounds` times; the best matmul rate (FLOP/s) between rounds."""
    contenders = {program: Contender(program, shape) for program in programs}
    peaks = []
    for n in range(WARMUP_ROUNDS + rounds):
        peaks.append(matmul_peak(precision))
        first = n % len(programs)  # who steps right after the peak was measured differs from round to round
        for program in programs[first:] + programs[:first]:
            contenders[program].step(measured=n >= WARMUP_ROUNDS)
    for contender in contenders.values():
        contender.close()
    losses = [contender.losses[0] for contender in contenders.values()]
    assert max(losses) - min(losses) < 1e-2, f"the contenders are not the same model: {losses}"
    return contenders, max(peaks)


def throughput_row(us: Contender, them: Contender, what: str, target: float | None, limit: float) -> dict[str, Any]:
    """Tokens per second; the limit is what the matmul peak would give."""
    ratio = median_ratio(us, them)
    n_parameters, (n_rows, width) = parameter_count(SHAPE).total, us.shape
    shape = f"{n_parameters / 1e6:.1f}M parameters, {n_rows} × {width}"
    return {
        "claim": f"training step, {shape} tokens, {what}",
        "unit": "tokens/s",
        "ours": round(us.tokens_per_second, 2),
        "peer": round(them.tokens_per_second, 2),
        "peer_name": them.program.name,
        "limit": round(us.tokens_per_second * limit / us.flops_per_second, 2),
        "ratio": round(ratio, 3),
        "target": target,
        "holds": target is None or ratio >= target,
        "seconds": {c.program.name: [round(s, 3) for s in c.seconds] for c in (us, them)},
        "losses": {c.program.name: [round(c.losses[i], 4) for i in (0, -1)] for c in (us, them)},
    }


def processor_row(us: Contender, them: Contender, what: str) -> dict[str, Any]:
    """Tokens per second of processor time, which does not count what a busy machine makes ranks wait."""
    n_rows, width = us.shape
    ours, theirs = (n_rows * width / statistics.median(c.processor_seconds) for c in (us, them))
    return {
        "claim": f"processor time of the training step, {what}",
        "unit": "tokens per second of processor time, all ranks",
        "ours": round(ours, 2),
        "peer": round(theirs, 2),
        "peer_name": them.program.name,
        "limit": None,
        "ratio": round(ours / theirs, 3),
        "target": None,
        "holds": True,
        "processor_seconds": {c.program.name: [round(s, 3) for s in c.processor_seconds] for c in (us, them)},
    }


def mfu_row(us: Contender, them: Contender, what: str, target: float, limit: float) -> dict[str, Any]:
    """The share of the matmul peak that the step turns into model FLOPs (causal scores only)."""
    mfu, theirs = us.flops_per_second / limit, them.flops_per_second / limit
    return {
        "claim": f"model FLOPs utilisation of the training step, {what}",
        "unit": f"share of the matmul peak of {limit / 1e9:.0f} GFLOP/s, {THREADS} threads",
        "ours": round(mfu, 3),
        "peer": round(theirs, 3),
        "peer_name": them.program.name,
        "limit": 1.0,
        "ratio": round(mfu / theirs, 3),
        "target": target,
        "holds": mfu >= target,
    }


def median_ratio(us: Contender, them: Contender) -> float:
    """How many times faster our step is than the peer's of the same round."""
    return statistics.median(b / a for a, b in zip(us.seconds, them.seconds, strict=True))


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def provenance() -> dict[str, Any]:
    """What was measured, when and on what."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "benchmark": "train_step",
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
