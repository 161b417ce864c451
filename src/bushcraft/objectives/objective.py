"""What the model learns to predict, as one function for the trainer: rows at positions → a batch.

Every objective makes examples of texts; an architecture decides how they become a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bushcraft.data.loader import Rows
from bushcraft.data.mixture import Mixture
from bushcraft.objectives import ul2
from bushcraft.objectives.assemble import decoder_batch, encoder_decoder_batch
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.causal import causal, causal_examples
from bushcraft.objectives.examples import Examples, merged
from bushcraft.objectives.prefix import prefix, prefix_examples
from bushcraft.objectives.span_corruption import Denoisers, corrupted
from bushcraft.objectives.special import SpecialTokens
from bushcraft.objectives.texts import Ints, Texts, texts

Architecture = Literal["decoder", "encoder_decoder"]


class Objective(Protocol):
    """A pure function of the texts, their positions and a seed."""

    def examples(self, texts: Texts) -> Examples:
        """What is read and what is predicted of each text, in their order."""
        ...


@dataclass(frozen=True)
class Causal:
    """Each next token; without `document_mask` attention runs over whole rows."""

    document_mask: bool = True

    def examples(self, texts: Texts) -> Examples:
        return causal_examples(texts)


@dataclass(frozen=True)
class Prefix:
    """The rest of a text from its beginning, of random length."""

    seed: int

    def examples(self, texts: Texts) -> Examples:
        return prefix_examples(texts, self.seed)


@dataclass(frozen=True)
class SpanCorruption:
    """Hidden spans of one kind."""

    special: SpecialTokens
    seed: int
    mean_span: float = 3.0
    corruption: float = 0.15
    both_ways: bool = True

    def examples(self, texts: Texts) -> Examples:
        texts = texts.without_separators(self.special.separator)
        n = len(texts)
        denoisers = Denoisers(np.full(n, self.mean_span), np.full(n, self.corruption), np.full(n, -1))
        return corrupted(texts, denoisers, self.special, self.seed, self.both_ways)


@dataclass(frozen=True)
class UL2:
    """Hidden spans of many kinds, each with its mode token."""

    special: SpecialTokens
    seed: int
    table: tuple[ul2.Denoiser, ...] = ul2.UL2
    both_ways: bool = True

    def examples(self, texts: Texts) -> Examples:
        texts = texts.without_separators(self.special.separator)
        denoisers = ul2.denoisers(texts, self.table, self.special, self.seed)
        return corrupted(texts, denoisers, self.special, self.seed, self.both_ways)


@dataclass(frozen=True)
class ObjectiveMixture:
    """Several objectives: each position belongs to one of them, by weights that may change from a position on."""

    parts: Mapping[str, Objective]
    weights: tuple[tuple[int, Mapping[str, float]], ...]
    """(first position, weight of each part), in the order of positions; the first begins at 0."""

    def examples(self, texts: Texts) -> Examples:
        part = self.part(texts.position)
        return merged([objective.examples(texts.chosen(part == i)) for i, objective in enumerate(self.parts.values())])

    def part(self, position: Ints) -> Ints:
        """Which of the parts each position belongs to."""
        begins = np.array([begin for begin, _ in self.weights])
        stretch = np.searchsorted(begins, position, side="right") - 1
        found = np.empty_like(position)
        for s in np.unique(stretch).tolist():
            begin, weights = self.weights[s]
            mixture = Mixture(tuple(weights[name] for name in self.parts))
            inside = stretch == s
            place = position[inside] - begin
            found[inside] = (mixture.counts(place + 1) - mixture.counts(place)).argmax(0)
        return found


def batch_of(objective: Objective, rows: Rows, begin: int, architecture: Architecture, separator: int) -> Batch:
    """The batch of rows that stand at positions from `begin` on, for a decoder or an encoder-decoder.

    Causal and prefix batches of a decoder keep the rows as they are, (B, S); all others are one long row a side.
    """
    if architecture == "decoder":
        match objective:
            case Causal(document_mask):
                return causal(rows, document_mask)
            case Prefix(seed):
                return prefix(rows, begin, seed)
    examples = objective.examples(texts(rows, begin))
    if architecture == "decoder":
        return decoder_batch(examples)
    return encoder_decoder_batch(examples, separator)


def makes_long_rows(objective: Objective, architecture: Architecture) -> bool:
    """Whether batches are long rows, whose length differs."""
    return architecture == "encoder_decoder" or not isinstance(objective, Causal | Prefix)
