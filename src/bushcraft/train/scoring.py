"""How likely a model finds what follows a context: for every architecture and objective, many at once.

Shapes: B rows, S positions, N scored positions, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bushcraft.model.cross_entropy import CHUNK_LOGITS, soft_capped
from bushcraft.model.precision import compute_precision, operand, product
from bushcraft.model.transformer import Decoder, Model
from bushcraft.objectives.assemble import decoder_batch, encoder_decoder_batch
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.examples import Examples

TOKENS_AT_ONCE = 8192
QUANTUM = 64
"""The length of a batch's row is a multiple of it."""


@dataclass(frozen=True)
class Pair:
    """What is read, and what is predicted from it; neither is empty."""

    read: Sequence[int]
    predicted: Sequence[int]
    lead: Sequence[int] = ()
    """Tokens with which the predicted side begins, and which are not scored: the sentinel of a gap."""
    both_ways: bool = False
    """Whether a decoder reads `read` both ways."""

    @property
    def n_tokens(self) -> int:
        return len(self.read) + len(self.lead) + len(self.predicted)


@dataclass(frozen=True)
class PairScore:
    """Of what is predicted."""

    nats: float
    is_greedy: bool
    """Whether each token is the most likely one."""


def score_pairs(
    model: Model, pairs: Sequence[Pair], start: int, precision: str = "fp32", between: Callable[[], None] = lambda: None
) -> list[PairScore]:
    """The score of each pair; `start` is the token with which a decoder begins that reads an encoder.

    `between` is called between batches, and may raise.
    """
    found: list[PairScore] = []
    for some in _groups(pairs):
        between()
        nats_N, greedy_N = _scored_positions(model, _batch(model, some, start), precision)
        lengths = [len(pair.predicted) for pair in some]
        for nats, greedy in zip(_split(nats_N, lengths), _split(greedy_N, lengths), strict=True):
            found.append(PairScore(float(nats.sum()), bool(greedy.all())))
    return found


def _groups(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Neighbouring pairs of about `TOKENS_AT_ONCE` tokens in all."""
    group: list[Pair] = []
    n_tokens = 0
    for pair in pairs:
        if group and n_tokens + pair.n_tokens > TOKENS_AT_ONCE:
            yield group
            group, n_tokens = [], 0
        group.append(pair)
        n_tokens += pair.n_tokens
    if group:
        yield group


def _batch(model: Model, pairs: list[Pair], start: int) -> Batch:
    assert all(len(pair.read) and len(pair.predicted) for pair in pairs)
    targets = [[*pair.lead, *pair.predicted] for pair in pairs]
    weights = [[0.0] * len(pair.lead) + [1.0] * len(pair.predicted) for pair in pairs]
    examples = Examples(
        position=np.arange(len(pairs)),
        place=np.zeros(len(pairs), np.int64),
        inputs=np.array([token for pair in pairs for token in pair.read], np.int64),
        input_length=np.array([len(pair.read) for pair in pairs], np.int64),
        targets=np.array([token for side in targets for token in side], np.int64),
        target_length=np.array([len(side) for side in targets], np.int64),
        both_ways=np.array([pair.both_ways for pair in pairs], np.bool_),
        weights=np.array([weight for side in weights for weight in side], np.float32),
    )
    if isinstance(model, Decoder):
        return decoder_batch(examples, QUANTUM)
    return encoder_decoder_batch(examples, start, QUANTUM)


@torch.no_grad()
def _scored_positions(model: Model, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
    """Nats and whether the target is the most likely token, (N,) each, of the positions with a weight."""
    with compute_precision(precision):
        h_BSD = model(batch.tokens, batch.segments, batch.encoder)
        scored_BS = batch.loss_weights > 0
        h_ND, targets_N = h_BSD[scored_BS], batch.targets[scored_BS]
        factor_VD = operand(model.unembedding_VD)
        size = max(1, CHUNK_LOGITS // len(factor_VD))
        nats, greedy = [], []
        for h_CD, targets_C in zip(_split(h_ND, size), _split(targets_N, size), strict=True):
            logits_CV = soft_capped(product(operand(h_CD), factor_VD).float(), model.config.logit_soft_cap)
            nats.append(logits_CV.logsumexp(1) - logits_CV.gather(1, targets_C[:, None])[:, 0])
            greedy.append(logits_CV.argmax(1) == targets_C)
        return torch.cat(nats), torch.cat(greedy)


def _split(x: Tensor, size: int | list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(x, size)
    return parts
