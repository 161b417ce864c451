"""A whole training step (forward, backward, clip, AdamW) beside transformers' Llama of the same shape and weights.

    .peers/bin/python benchmarks/train_step.py [--quick]

Each contender has a process of its own, so that it keeps its own memory as its own program would, and they step in
turn, so that what else the machine does hits them alike. A contender's figure is its median step; the ratio is the
median of the ratios within a round. Every step's seconds are kept in the result.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.model.flops import training_flops
from bushcraft.model.parameter_count import parameter_count
from bushcraft.model.precision import multiplies_bf16
from bushcraft.model.transformer import Decoder
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.parallel_model import ParallelModel, Settings
from bushcraft.train.heap import keep_freed_memory
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.peak import matmul_peak
from bushcraft.train.recipe import OptimizerConfig

RESULT = Path(__file__).parent / "results" / "train_step.json"
THREADS = 2
WARMUP_ROUNDS = 2
LEARNING_RATE = 3e-4
SHAPE = ModelConfig(
    vocab_size=8192, d_model=512, n_layers=8, n_heads=8, n_kv_heads=4, d_ff=1536, qk_norm=False, norm_eps=1e-6
)
HF_NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Our names of a block's parts, where they differ from transformers'; gate, up and down only add _proj."""


@dataclass(frozen=True)
class Program:
    """What a contender's process does."""

    who: str
    """"bushcraft" or "transformers"."""
    precision: str
    compile: bool = False
    keep_memory: bool = False
    """Whether freed memory stays with the process: Bushcraft's trainer does so, a plain loop does not."""

    @property
    def name(self) -> str:
        """As the result calls it."""
        version = f" {transformers.__version__}" if self.who == "transformers" else ""
        options = [self.precision, *["compiled"] * self.compile]
        if self.keep_memory and self.who == "transformers":
            options.append("with Bushcraft's heap settings")
        return f"{self.who}{version}, {', '.join(options)}"


class Contender:
    """A process that trains: `step` does one optimizer step there and gives its seconds and the loss before it."""

    def __init__(self, program: Program, batch: Batch) -> None:
        self.program, self.batch = program, batch
        self.seconds: list[float] = []
        self.losses: list[float] = []
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, program, tuple(batch.tokens.shape)), daemon=True)
        self._process.start()

    def step(self, measured: bool) -> None:
        """One step."""
        self._pipe.send("step")
        seconds, loss = self._pipe.recv()
        self.losses.append(loss)
        if measured:
            self.seconds.append(seconds)
        print(f"{self.program.name}: {seconds:.2f} s{'' if measured else ', warming up'}", file=sys.stderr)

    def close(self) -> None:
        """End the process."""
        self._pipe.send("end")
        self._process.join()

    @property
    def tokens_per_second(self) -> float:
        return self.batch.tokens.numel() / statistics.median(self.seconds)

    @property
    def flops_per_second(self) -> float:
        return training_flops(SHAPE, self.batch.segments) / statistics.median(self.seconds)


def serve(pipe: Connection, program: Program, shape: tuple[int, int]) -> None:
    """A contender's process: make the model, step whenever asked."""
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if program.keep_memory:
        keep_freed_memory()
    make = {"bushcraft": ours, "transformers": peer}[program.who]
    step = make(program.precision, batch_of(*shape), program.compile)
    while pipe.recv() == "step":
        began = perf_counter()
        loss = step()
        pipe.send((perf_counter() - began, loss))


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, nothing compiled or written")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows = measure(batch_of(1, 512) if quick else batch_of(4, 1024), rounds=2 if quick else 4, quick=quick)
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "seconds"}, indent=1))
    if not quick:
        RESULT.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")


def measure(batch: Batch, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """All rows: fp32 and bf16, and both compiled where a compiler is there."""
    compiled = can_compile() and not quick
    rows = []
    for precision, target, mfu_target in (("fp32", 1.1, 0.9), ("bf16", 1.2, 0.55)):
        # A machine without bf16 products needs minutes for what the peer would do with the whole batch.
        slow = precision == "bf16" and not multiplies_bf16(torch.device("cpu"))
        us = Program("bushcraft", precision, keep_memory=True)
        them = Program("transformers", precision)
        programs = [us, them, replace(them, keep_memory=True)]
        if compiled:
            programs += [replace(us, compile=True), replace(them, compile=True)]
        contenders, limit = alternate(programs, batch_of(1, 32) if slow else batch, rounds, precision)
        first, second = contenders[us], contenders[them]
        assert abs(first.losses[0] - second.losses[0]) < 1e-2, "the contenders are not the same model"
        rows.append(throughput_row(first, second, precision, target, limit))
        rows.append(throughput_row(first, contenders[programs[2]], f"{precision}, both keep memory", None, limit))
        rows.append(mfu_row(first, second, precision, mfu_target, limit))
        if compiled:
            pair = contenders[programs[3]], contenders[programs[4]]
            rows.append(throughput_row(pair[0], second, f"{precision}, ours compiled", None, limit))
            rows.append(throughput_row(*pair, f"{precision}, both compiled", None, limit))
            rows.append(mfu_row(pair[0], pair[1], f"{precision}, both compiled", mfu_target, limit))
    return rows


def alternate(
    programs: list[Program], batch: Batch, rounds: int, precision: str
) -> tuple[dict[Program, Contender], float]:
    """Step each in turn, twice unmeasured and then `rounds` times; the best matmul rate (FLOP/s) between rounds."""
    contenders = {program: Contender(program, batch) for program in programs}
    peaks = []
    for n in range(WARMUP_ROUNDS + rounds):
        peaks.append(matmul_peak(precision))
        for contender in contenders.values():
            contender.step(measured=n >= WARMUP_ROUNDS)
    for contender in contenders.values():
        contender.close()
    return contenders, max(peaks)


def ours(precision: str, batch: Batch, compile_it: bool) -> Callable[[], float]:
    """Bushcraft's own step, as the trainer does it."""
    compile_layers = (lambda model: model.compile_layers()) if compile_it else None
    model = ParallelModel(SHAPE, None, Settings(precision=precision), torch.device("cpu"), compile_layers)
    copy_weights(llama(), model.stages[0].model)
    optimizer = Optimizer(model.weights, OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.1))

    def step() -> float:
        loss, _ = model.gradients([batch], batch.tokens.numel())
        model.weights.clip(1.0)
        optimizer.step(LEARNING_RATE)
        model.weights.zero_gradients()
        return float(loss.detach())

    return step


def peer(precision: str, batch: Batch, compile_it: bool) -> Callable[[], float]:
    """The loop that transformers' and PyTorch's documentation show."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compile_it else model

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def llama() -> transformers.LlamaForCausalLM:
    """The peer, with the same random weights at each call."""
    config = transformers.LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.d_model,
        intermediate_size=SHAPE.d_ff,
        num_hidden_layers=SHAPE.n_layers,
        num_attention_heads=SHAPE.n_heads,
        num_key_value_heads=SHAPE.n_kv_heads,
        rms_norm_eps=SHAPE.norm_eps,
        rope_theta=SHAPE.rope_theta,
        tie_word_embeddings=SHAPE.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with seeded(0):
        return transformers.LlamaForCausalLM(config)


def copy_weights(source: transformers.LlamaForCausalLM, target: Decoder) -> None:
    """Give our model the peer's weights."""
    theirs = source.state_dict()
    for name, parameter in target.named_parameters():
        parameter.data.copy_(theirs[hf_name(name)])


def hf_name(name: str) -> str:
    """What transformers calls our parameter."""
    match name.split("."):
        case ["layers", index, *part, "weight"]:
            ours_ = ".".join(part)
            return f"model.layers.{index}.{HF_NAMES.get(ours_, f'{ours_}_proj')}.weight"
        case ["embedding", _]:
            return "model.embed_tokens.weight"
        case _:
            return "model.norm.weight"


def throughput_row(us: Contender, them: Contender, what: str, target: float | None, limit: float) -> dict[str, Any]:
    """Tokens per second; the limit is what the matmul peak would give."""
    ratio = median_ratio(us, them)
    n_parameters, (n_rows, width) = parameter_count(SHAPE).total, us.batch.tokens.shape
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


def batch_of(n_rows: int, width: int) -> Batch:
    """Random tokens; every row is one document, for the peer knows no others."""
    with seeded(0):
        tokens = torch.randint(SHAPE.vocab_size, (n_rows, width + 1))
    row = torch.arange(n_rows, dtype=torch.int32)
    zeros = torch.zeros_like(row)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        loss_weights=torch.ones(n_rows, width),
        segments=Segments(row=row, start=zeros, prefix_length=zeros, length=torch.full_like(row, width)),
    )


@contextmanager
def seeded(seed: int) -> Iterator[Tensor]:
    """torch's generator from `seed` on, inside the block alone."""
    before = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        yield before
    finally:
        torch.set_rng_state(before)


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
