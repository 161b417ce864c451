"""Instruction data: answers are predicted from all that came before them, and nothing else is.

A text is one example, the separator in front: prompt and answer, or several of them in turn, with a marker before and
behind each answer:

    separator prompt BEGIN answer END prompt BEGIN answer END

The markers are taken away here; no model sees them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bushcraft.objectives.examples import Examples
from bushcraft.objectives.texts import Texts


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
        found = [
            (position, place, inputs, targets, weights)
            for position, place, tokens in zip(
                texts.position.tolist(), texts.place.tolist(), np.split(texts.tokens, texts.start[1:]), strict=True
            )
            for inputs, targets, weights in (self._by_answer if self.every_answer else self._whole)(tokens.tolist())
        ]
        position, place, inputs, targets, weights = zip(*found, strict=True) if found else ((),) * 5
        return Examples(
            position=np.array(position, np.int64),
            place=np.array(place, np.int64),
            inputs=np.array([t for side in inputs for t in side], np.int32),
            input_length=np.array([len(side) for side in inputs], np.int64),
            targets=np.array([t for side in targets for t in side], np.int32),
            target_length=np.array([len(side) for side in targets], np.int64),
            both_ways=np.full(len(found), self.both_ways),
            weights=np.array([w for side in weights for w in side], np.float32),
        )

    def _whole(self, tokens: list[int]) -> list[tuple[list[int], list[int], list[float]]]:
        first = tokens.index(self.begin)
        targets, weights, weight = [], [], 0.0
        for token in tokens[first:]:
            if token in (self.begin, self.end):
                weight = float(token == self.begin)
            else:
                targets.append(token)
                weights.append(weight)
        return [(tokens[:first], [*targets, self.separator], [*weights, 1.0])]

    def _by_answer(self, tokens: list[int]) -> list[tuple[list[int], list[int], list[float]]]:
        found: list[tuple[list[int], list[int], list[float]]] = []
        before: list[int] = []
        answer: list[int] | None = None
        for token in [*tokens, self.end]:
            if token == self.begin:
                answer = []
            elif token == self.end and answer is not None:
                found.append((list(before), [*answer, self.separator], [1.0] * (len(answer) + 1)))
                before, answer = before + answer, None
            elif token != self.end:
                (before if answer is None else answer).append(token)
        return found


def document(turns: Sequence[tuple[Sequence[int], Sequence[int]]], separator: int, begin: int, end: int) -> list[int]:
    """The text of (prompt, answer) turns: what `Instructions` reads."""
    tokens = [separator]
    for prompt, answer in turns:
        tokens += [*prompt, begin, *answer, end]
    return tokens
