"""Held-out bits per byte of any model that goes on with texts, through pairs of a context and what follows it.

Every document stands by itself, and every byte of it is scored once, its end included. A window's first half is
context: an encoder reads it, or a decoder reads it as its prompts were read in training. The first window's context
is the separator alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from bushcraft.model.transformer import Decoder, Model
from bushcraft.objectives.batch import Batch
from bushcraft.train.evaluate import Score, score
from bushcraft.train.prompt import PromptReader
from bushcraft.train.sample import TextModel
from bushcraft.train.scoring import TOKENS_AT_ONCE, Pair, score_pairs
from bushcraft.train.step import losses

CONTEXT = 0.5
"""The share of a window that is context. An encoder reads it, so that more of it costs a decoder nothing."""
PAIRS_AT_ONCE = 256

Documents = Iterable[tuple[str, NDArray[Any], int]]
"""(name, tokens with the separator first, bytes of text)."""


def score_documents(
    model: Model,
    reader: PromptReader,
    start: int,
    documents: Documents,
    precision: str,
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Score:
    """The score of documents; `between` is called between batches, `progress` hears how many bytes are read so far."""
    total, n_bytes, n_tokens, n_documents = 0.0, 0, 0, 0
    pending: list[Pair] = []

    def score_pending() -> float:
        found = score_pairs(model, pending, start, precision, between)
        pending.clear()
        progress(n_bytes)
        return sum(pair.nats for pair in found)

    for _, tokens, size in documents:
        pending += windows(tokens.tolist(), reader)
        n_bytes, n_tokens, n_documents = n_bytes + size, n_tokens + len(tokens), n_documents + 1
        if len(pending) >= PAIRS_AT_ONCE:
            total += score_pending()
    total += score_pending()
    return Score(total, n_bytes, n_tokens, n_documents)


def score_text(
    model: TextModel,
    precision: str,
    documents: Documents,
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Score:
    """The score of documents by whatever model: none of them where it only fills gaps.

    A decoder that reads causally has its windows packed into rows, the others in pairs.
    """
    reader = model.prompts
    if not reader.goes_on:
        return Score(0.0, 0, 0, 0)
    if isinstance(model.model, Decoder) and reader.form.continues and not reader.form.is_prefix:

        def nats(batch: Batch) -> Tensor:
            between()
            return losses(model.model, batch, precision)[0]

        n_rows = max(1, TOKENS_AT_ONCE // reader.context)
        return score(nats, iter(documents), model.start, reader.context, n_rows, progress)
    return score_documents(model.model, reader, model.start, documents, precision, between, progress)


def windows(tokens: list[int], reader: PromptReader, with_end: bool = True) -> Iterator[Pair]:
    """Pairs that predict each token of a document but its separator, and its end, once."""
    tokens = [*tokens, tokens[0]] if with_end else tokens
    n_context = int(reader.context * CONTEXT)
    n_predicted = reader.context - n_context
    for begin in range(1, len(tokens), n_predicted):
        yield reader.pair(tokens[max(0, begin - n_context) : begin], tokens[begin : begin + n_predicted])
