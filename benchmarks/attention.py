"""Attention over pieces beside torch's with a dense boolean mask: does it cost what the mask lets through?

    python benchmarks/attention.py [--quick]

Both get the same queries, keys and values, run forwards and backwards in turn in one process, and must agree. The
dense mask is made before the clock starts; ours is read from its pieces each time. The figures are medians, the ratio
is the median over pairs of runs, and the target is one of the ratio. The limit is the area bound: what the machine's
best matrix product would give on the seven products (two forwards, five backwards) of the scores that the mask lets
through, and on nothing else.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command sets it: threads that wait leave the CPU to others

import torch
from result import Row, write
from torch import Tensor

from bushcraft.model.attention import Mask, Segments, attend, bidirectional_mask, cross_mask, prefix_mask
from bushcraft.model.precision import multiplies_bf16
from bushcraft.train.heap import keep_freed_memory
from bushcraft.train.peak import matmul_peak

THREADS = 2
POSITIONS = 8192
"""Of queries in a batch, whatever the length of a row."""
HEADS, WIDTH = 8, 64
FLOPS_PER_SCORE = 7 * 2 * WIDTH * HEADS
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TARGETS = {"prefix of half the length": 1.5, "causal, 16 packed pieces": 4.0}
LEAST_PAIRS, MOST_PAIRS = 3, 25
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the shorter rows alone, and fewer pairs of runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    comparisons = []
    for length in (2048,) if quick else (2048, 8192):
        for precision, dtype in DTYPES.items():
            if precision == "bf16" and not multiplies_bf16(torch.device("cpu")):
                continue
            for name, masks in masks_of(POSITIONS // length, length).items():
                comparisons.append(Comparison(name, length, precision, sum(mask.n_scores() for mask in masks)))
                compare(comparisons[-1], masks, dtype, seconds=4 if quick else 15)
                print(f"{comparisons[-1].claim()}: {comparisons[-1].ratio():.3g} times as fast", flush=True)
    write("attention", [row_of(one, peak(comparisons, one.precision)) for one in comparisons], quick)


def masks_of(n_rows: int, length: int) -> dict[str, list[Mask]]:
    """The masks of one layer, by kind."""
    whole, half = segments(n_rows, length, 1), segments(n_rows, length, 1, prefix_share=0.5)
    packed, other = segments(n_rows, length, 16), segments(n_rows, length, 16, seed=1)
    windowed = Mask(prefix_mask(whole).pieces, window=length // 8)
    return {
        "causal": [prefix_mask(whole)],
        "prefix of half the length": [prefix_mask(half)],
        "causal, 16 packed pieces": [prefix_mask(packed)],
        "prefix of half of each of 16 packed pieces": [prefix_mask(segments(n_rows, length, 16, prefix_share=0.5))],
        "encoder-decoder, 16 packed pieces: encoder, decoder and cross-attention": [
            bidirectional_mask(other),
            prefix_mask(packed),
            cross_mask(packed, other),
        ],
        "causal with a window of an eighth": [windowed],
    }


def segments(n_rows: int, length: int, n_pieces: int, prefix_share: float = 0.0, seed: int = 0) -> Segments:
    """Rows cut into pieces of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.stack([torch.randperm(length - 1, generator=generator)[: n_pieces - 1] + 1 for _ in range(n_rows)])
    starts = torch.nn.functional.pad(cuts.sort(1).values, (1, 0)).flatten()
    rows = torch.arange(n_rows).repeat_interleave(n_pieces)
    lengths = torch.nn.functional.pad(starts.view(n_rows, -1), (0, 1), value=length).diff(dim=1).flatten()
    columns = (rows, starts, (lengths * prefix_share).long(), lengths)
    return Segments(*(column.int() for column in columns))


@dataclass(frozen=True)
class Comparison:
    """Seconds of ours and the peer's runs, in pairs, and the rate of matrix products (FLOP/s) before each pair."""

    name: str
    length: int
    precision: str
    n_scores: int
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def claim(self) -> str:
        shape = f"{POSITIONS // self.length} × {self.length} positions, {HEADS} heads of {WIDTH}"
        return f"attention of {shape}, {self.precision}, {self.name}"

    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.ours, self.peer, strict=True))


def compare(comparison: Comparison, masks: list[Mask], dtype: torch.dtype, seconds: float) -> None:
    """Run both in turn for so long, three times at least; the first pair warms up and must agree."""
    torch.manual_seed(0)
    length = comparison.length
    q, k, v, direction = (torch.randn(POSITIONS // length, length, HEADS, WIDTH).to(dtype) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    matrices = [visible(mask, POSITIONS // length, length) for mask in masks]

    def run_ours() -> tuple[float, list[Tensor]]:
        return timed(lambda i: attend(*inputs, masks[i]), len(masks), inputs, direction)

    def run_peer() -> tuple[float, list[Tensor]]:
        return timed(lambda i: dense(*inputs, matrices[i]), len(masks), inputs, direction)

    for one, other in zip(run_ours()[1], run_peer()[1], strict=True):
        assert (one - other).float().norm() <= TOLERANCE[dtype] * other.float().norm()
    began = perf_counter()
    while (n := len(comparison.ours)) < LEAST_PAIRS or (n < MOST_PAIRS and perf_counter() - began < seconds):
        comparison.peaks.append(matmul_peak(comparison.precision, seconds=0.1))
        comparison.ours.append(run_ours()[0])
        comparison.peer.append(run_peer()[0])


def peak(comparisons: list[Comparison], precision: str) -> float:
    """The best rate that was seen in all of the run: a busy moment shows too little."""
    return max(rate for one in comparisons if one.precision == precision for rate in one.peaks)


def row_of(comparison: Comparison, peak: float) -> Row:
    """Positions a second, forwards and backwards through all of a layer's masks."""
    target, ratio = TARGETS.get(comparison.name), comparison.ratio()
    return Row(
        claim=comparison.claim(),
        unit="positions/s",
        ours=rounded(POSITIONS / statistics.median(comparison.ours)),
        peer=rounded(POSITIONS / statistics.median(comparison.peer)),
        peer_name="scaled_dot_product_attention with a boolean mask",
        limit=rounded(POSITIONS * peak / (comparison.n_scores * FLOPS_PER_SCORE)),
        ratio=rounded(ratio),
        target=None if target is None else f"ratio ≥ {target:g}",
        holds=None if target is None else ratio >= target,
    )


def timed(
    function: Callable[[int], Tensor], n_masks: int, inputs: list[Tensor], direction: Tensor
) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and a backward pass of each mask, and the outputs and gradients of the last."""
    found: list[Tensor] = []
    begin = perf_counter()
    for i in range(n_masks):
        out = function(i)
        found = [out.detach(), *torch.autograd.grad(out, inputs, direction)]
    return perf_counter() - begin, found


def dense(q_BSHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor, visible_B1ST: Tensor) -> Tensor:
    """What is written where a mask is a matrix."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHE, k_BTHE, v_BTHE))
    out: Tensor = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible_B1ST)
    return out.transpose(1, 2)


def visible(mask: Mask, n_rows: int, length: int) -> Tensor:
    """The mask as a matrix, (B, 1, S, T) bool."""
    seen = torch.zeros(n_rows, 1, length, length, dtype=torch.bool)
    for row, q_start, n_queries, _, k_start, n_keys, causal in mask.pieces.tolist():
        ahead = torch.arange(n_keys) - torch.arange(n_queries)[:, None] - (n_keys - n_queries)
        part = (ahead <= 0) if causal else torch.ones_like(ahead, dtype=torch.bool)
        if mask.window is not None:
            part &= ahead.abs() < mask.window
        seen[row, 0, q_start : q_start + n_queries, k_start : k_start + n_keys] = part
    return seen


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
