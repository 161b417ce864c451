"""A whole training step (forward, backward, clip, AdamW) beside transformers' Llama of the same shape and weights.

    .peers/bin/python benchmarks/train_step.py [--quick]

The contenders alternate step by step, so that what else the machine does hits them alike. A contender's figure is
its fastest step: other processes only ever slow one down. Every step's seconds are kept in the result.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig, parameter_count
from bushcraft.model.flops import training_flops
from bushcraft.model.precision import multiplies_bf16
from bushcraft.model.transformer import Decoder
from bushcraft.objectives.batch import Batch
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.peak import matmul_peak
from bushcraft.train.recipe import OptimizerConfig
from bushcraft.train.step import clip, gradients

RESULT = Path(__file__).parent / "results" / "train_step.json"
THREADS = 2
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


@dataclass
class Contender:
    """Something that trains: `step` does one optimizer step and gives the loss before it."""

    name: str
    step: Callable[[], float]
    batch: Batch
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.batch.tokens.numel() / min(self.seconds)

    @property
    def flops_per_second(self) -> float:
        return training_flops(SHAPE, self.batch.segments) / min(self.seconds)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, nothing compiled or written")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows = measure(batch_of(1, 512) if quick else batch_of(4, 1024), rounds=2 if quick else 5, quick=quick)
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "seconds"}, indent=1))
    if not quick:
        RESULT.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")


def measure(batch: Batch, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """All rows: fp32, bf16, and both compiled where a compiler is there."""
    # A machine without bf16 products needs minutes for what the peer would do with the whole batch.
    bf16_batch = batch if multiplies_bf16(torch.device("cpu")) else batch_of(1, 32 if quick else 128)
    fp32 = [ours("fp32", batch), peer("fp32", batch)]
    bf16 = ours("bf16", batch)
    peaks = alternate([*fp32, bf16], rounds)
    assert abs(fp32[0].losses[0] - fp32[1].losses[0]) < 1e-3, "the contenders are not the same model"
    peer_bf16 = peer("bf16", bf16_batch)
    peaks += alternate([peer_bf16], 1 if bf16_batch is not batch else rounds)
    if can_compile() and not quick:
        compiled = [ours("fp32", batch, compile_it=True), peer("fp32", batch, compile_it=True)]
        peaks += alternate(compiled, rounds)
        compiled_rows = [(*compiled, "fp32, both compiled", None)]
    else:
        compiled_rows = []
    limit = max(peaks)
    pairs = [
        (*fp32, "fp32", 1.1),
        (bf16, peer_bf16, f"bf16, peer on {bf16_batch.tokens.numel()} tokens", 1.2),
        (bf16, fp32[1], "bf16 beside the peer's fp32", None),
        *compiled_rows,
    ]
    return [mfu_row(*fp32, limit), *(throughput_row(a, b, what, target, limit) for a, b, what, target in pairs)]


def alternate(contenders: list[Contender], rounds: int) -> list[float]:
    """Step each in turn, once unmeasured and then `rounds` times; the matmul peaks (FLOP/s) between rounds."""
    peaks = []
    for measured in [False] + [True] * rounds:
        peaks.append(matmul_peak("fp32"))
        for contender in contenders:
            began = perf_counter()
            contender.losses.append(contender.step())
            if measured:
                contender.seconds.append(perf_counter() - began)
            print(
                f"{contender.name}: {perf_counter() - began:.2f} s{'' if measured else ', warming up'}", file=sys.stderr
            )
    return peaks


def ours(precision: str, batch: Batch, compile_it: bool = False) -> Contender:
    """Bushcraft's own step, as the trainer does it."""
    model = Decoder(SHAPE)
    copy_weights(llama(), model)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.1))
    if compile_it:
        model.compile_layers()

    def step() -> float:
        loss, _ = gradients(model, [batch], batch.tokens.numel(), precision, z_loss=0.0)
        clip(list(model.parameters()), 1.0)
        optimizer.step(LEARNING_RATE)
        model.zero_grad(set_to_none=False)
        return float(loss.detach())

    return Contender(f"bushcraft {precision}{' compiled' * compile_it}", step, batch)


def peer(precision: str, batch: Batch, compile_it: bool = False) -> Contender:
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

    return Contender(f"transformers {transformers.__version__} {precision}{' compiled' * compile_it}", step, batch)


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
    ratio = us.tokens_per_second / them.tokens_per_second
    shape = f"{parameter_count(SHAPE) / 1e6:.1f}M parameters, {us.batch.tokens.shape[0]} × {us.batch.tokens.shape[1]}"
    return {
        "claim": f"training step, {shape} tokens, {what}",
        "unit": "tokens/s",
        "ours": round(us.tokens_per_second, 2),
        "peer": round(them.tokens_per_second, 2),
        "peer_name": them.name,
        "limit": round(us.tokens_per_second * limit / us.flops_per_second, 2),
        "ratio": round(ratio, 3),
        "median_paired_ratio": median_ratio(us, them),
        "target": target,
        "holds": target is None or ratio >= target,
        "seconds": {c.name: [round(s, 3) for s in c.seconds] for c in (us, them)},
        "losses": {c.name: [round(c.losses[i], 4) for i in (0, -1)] for c in (us, them)},
    }


def mfu_row(us: Contender, them: Contender, limit: float) -> dict[str, Any]:
    """The share of the matmul peak that the step turns into model FLOPs (causal scores only)."""
    mfu, theirs = us.flops_per_second / limit, them.flops_per_second / limit
    return {
        "claim": "model FLOPs utilisation of the fp32 training step",
        "unit": f"share of the matmul peak of {limit / 1e9:.1f} GFLOP/s, {THREADS} threads",
        "ours": round(mfu, 3),
        "peer": round(theirs, 3),
        "peer_name": them.name,
        "limit": 1.0,
        "ratio": round(mfu / theirs, 3),
        "target": 0.9,
        "holds": mfu >= 0.9,
    }


def median_ratio(us: Contender, them: Contender) -> float | None:
    """How many times faster our step is than the peer's of the same round; the batches must be the same size."""
    if len(us.seconds) != len(them.seconds) or us.batch is not them.batch:
        return None
    return round(statistics.median(b / a for a, b in zip(us.seconds, them.seconds, strict=True)), 3)


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
