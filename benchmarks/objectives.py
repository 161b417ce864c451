"""How fast do UL2's denoisers make batches, in one process and one thread, beside the loop that one would write first?

Rows of random tokens, in documents of about a thousand, become encoder-decoder batches, packed, as the trainer makes
them. The peer is T5's algorithm text by text in numpy (`random_spans_noise_mask` and its sentinels, from the paper's
description), without any packing. The limit is a copy of the bytes that a batch is made of and makes.

    python benchmarks/objectives.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from result import Row, row, write

from bushcraft.data import packing
from bushcraft.data.loader import Rows
from bushcraft.data.order import Samples
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import UL2, batch_of
from bushcraft.objectives.special import MODES, special_tokens
from bushcraft.objectives.texts import texts
from bushcraft.objectives.ul2 import UL2 as TABLE

SHAPES = ((64, 512), (16, 2048), (128, 2048))
"""Rows and tokens a row of a microbatch."""
DOCUMENT = 1000
VOCABULARY = 32_000
TARGET = 20e6
REAL_TARGET = 0.97


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a few repetitions")
    quick = options.parse_args().quick
    torch.set_num_threads(1)
    rows = [r for shape in SHAPES for r in measured(*shape, repetitions=5 if quick else 40)]
    write("objectives", rows, quick)


def measured(n_rows: int, width: int, repetitions: int) -> list[Row]:
    special = special_tokens({}, VOCABULARY, 0, 342, MODES["released"])
    rows, objective = random_rows(n_rows, width), UL2(special, 0)
    batches = [batch_of(objective, rows, i * n_rows, "encoder_decoder", 0) for i in range(7)]
    seconds = typical(lambda i: batch_of(objective, rows, i * n_rows, "encoder_decoder", 0), repetitions)
    alone = texts(rows, 0).without_separators(0)
    by_text = typical(lambda i: text_by_text(np.split(alone.tokens, alone.start[1:]), i), max(2, repetitions // 10))
    n_tokens = n_rows * width
    copied = np.zeros(n_bytes(batches[0]) + rows.tokens.nbytes, np.uint8)
    copy = typical(lambda _: copied.copy(), repetitions)
    shape = f"{n_rows} × {width}"
    return [
        row(
            f"UL2 batches for an encoder-decoder, microbatches of {shape}",
            "tokens/s",
            n_tokens / seconds,
            peer=n_tokens / by_text,
            peer_name="text by text in numpy, unpacked",
            limit=n_tokens / copy,
            at_least=TARGET,
        ),
        row(f"positions of the emptier side that hold tokens, {shape}", "share", real(batches), at_least=REAL_TARGET),
    ]


def random_rows(n_rows: int, width: int) -> Rows:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (n_rows, width + 1)).astype(np.uint16)
    tokens[rng.random(tokens.shape) < 1 / DOCUMENT] = 0
    full, zeros = np.full(n_rows, width), np.zeros(n_rows, np.int64)
    return Rows(tokens, full, packing.pieces(tokens[:, :-1], 0, full), Samples(zeros, zeros, zeros))


def typical(make: Callable[[int], Any], repetitions: int) -> float:
    """Median seconds."""
    seconds = []
    for i in range(repetitions):
        began = time.perf_counter()
        make(i)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def n_bytes(batch: Batch) -> int:
    assert batch.encoder is not None
    return sum(t.nbytes for t in (batch.tokens, batch.targets, batch.loss_weights, batch.encoder.tokens))


def real(batches: list[Batch]) -> float:
    """The share of positions that are no padding, on the side of a batch where it is the least."""
    shares = []
    for batch in batches:
        for side in (batch, batch.encoder):
            assert side is not None
            shares.append(1 - int(side.segments.length[-1]) / side.tokens.numel())
    return min(shares)


def text_by_text(documents: list[NDArray[Any]], seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Inputs and targets of each text."""
    rng = np.random.default_rng(seed)
    found = []
    for text in documents:
        denoiser = TABLE[rng.integers(len(TABLE))]
        hidden = noise_mask(rng, len(text), denoiser.corruption, denoiser.mean_span)
        found.append((with_sentinels(text, hidden), with_sentinels(text, ~hidden)))
    return found


def noise_mask(rng: np.random.Generator, length: int, rate: float, mean_span: float) -> NDArray[np.bool_]:
    n_noise = min(max(round(length * rate), 1), length - 1) if length > 1 else 1
    n_spans = max(round(n_noise / mean_span), 1)

    def parts(n: int) -> NDArray[np.int64]:
        begins = np.arange(n - 1) < n_spans - 1
        rng.shuffle(begins)
        return np.bincount(np.concatenate([[0], begins.cumsum()]).astype(np.int64), minlength=n_spans)

    lengths = np.stack([parts(length - n_noise), parts(n_noise)], 1).reshape(-1)
    return np.repeat(np.tile([False, True], n_spans), lengths)


def with_sentinels(text: NDArray[Any], hidden: NDArray[np.bool_]) -> NDArray[Any]:
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    marked = np.where(begins, VOCABULARY + begins.cumsum() - 1, text)
    return np.append(marked[~hidden | begins], 0)


if __name__ == "__main__":
    main()
