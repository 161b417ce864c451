"""Instruction data: answers are predicted from all that came before them, and nothing else is.

A row holds one example, `rows.real` tokens of it, and padding behind them; no next row goes on with it. So it is one
text: the separator in front, then prompt and answer, or several of them in turn, with a marker before and behind each
answer:

    separator prompt BEGIN answer END prompt BEGIN answer END

There is at least one answer, and a text ends with one; the marker behind it is missing where the row was full before.
What is predicted ends with a separator, so that a model learns to stop; the row need not hold it. The markers are
taken away here; no model sees them.

Shapes: n tokens, P texts, A answers of all of them together.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bushcraft.objectives.causal import split_examples
from bushcraft.objectives.examples import Examples, ranges
from bushcraft.objectives.texts import Ints, Texts


@dataclass(frozen=True)
class Instructions:
    """Answers from prompts. For `every_answer` each is an example of its own, as an encoder-decoder needs it; else a
    text is one example, whose later prompts are read on the way."""

    separator: int
    begin: int
    """The marker before an answer."""
    end: int
    """The marker behind it."""
    every_answer: bool = False
    both_ways: bool = True

    def examples(self, texts: Texts) -> Examples:
        """One example for each text, or for each answer."""
        is_begin = texts.tokens == self.begin
        is_plain = ~is_begin & (texts.tokens != self.end)
        in_answer = self._in_answer(texts, is_plain)
        plain = self._plain(texts, is_plain)
        begins = np.flatnonzero(is_begin)
        text = np.searchsorted(texts.start, begins, side="right") - 1
        n_read = is_plain.cumsum()[begins] - plain.start[text]
        if self.every_answer:
            n_answer = np.bincount(is_begin.cumsum()[in_answer] - 1, minlength=len(begins))
            return split_examples(_up_to(plain, text, n_read + n_answer), n_read, self.both_ways)
        n_read = n_read[np.diff(text, prepend=-1) > 0]
        assert len(n_read) == len(texts), "there is an answer in each text"
        # What is asked is cut as the tokens are, and the separator behind them is asked too.
        asked = dataclasses.replace(plain, tokens=in_answer[is_plain], following=np.ones(len(plain), np.bool_))
        weights = split_examples(asked, n_read, self.both_ways).targets.astype(np.float32)
        return dataclasses.replace(split_examples(plain, n_read, self.both_ways), weights=weights)

    def _in_answer(self, texts: Texts, is_plain: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) the tokens between the markers."""
        changes = np.where(is_plain, 0, np.arange(len(is_plain)))
        changes[texts.start] = texts.start  # the text before may have lost its last marker
        found: NDArray[np.bool_] = is_plain & (texts.tokens[np.maximum.accumulate(changes)] == self.begin)
        return found

    def _plain(self, texts: Texts, is_plain: NDArray[np.bool_]) -> Texts:
        """The texts without markers, with the separator that ends each example."""
        length = np.add.reduceat(is_plain, texts.start, dtype=np.int64)
        following = np.full(len(texts), self.separator, texts.tokens.dtype)
        return Texts(texts.tokens[is_plain], length, texts.position, texts.place, following)


def _up_to(texts: Texts, which: Ints, length: Ints) -> Texts:
    """(A,) the beginnings of some texts."""
    tokens = texts.tokens[ranges(texts.start[which], length)]
    return Texts(tokens, length, texts.position[which], texts.place[which], texts.following[which])


def document(turns: Sequence[tuple[Sequence[int], Sequence[int]]], separator: int, begin: int, end: int) -> list[int]:
    """The text of (prompt, answer) turns: what `Instructions` reads."""
    tokens = [separator]
    for prompt, answer in turns:
        tokens += [*prompt, begin, *answer, end]
    return tokens
