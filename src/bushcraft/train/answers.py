"""What a model answers to contexts, many at once, up to a string that ends an answer.

A context that is longer than the texts of training loses its beginning, as evaluations have it: a question stands at
the end of its context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bushcraft.model.generate import generate
from bushcraft.train.sample import AT_ONCE, Spelling, TextModel
from bushcraft.train.scoring import Pair

LEAST_READ = 4
"""Tokens that stay of a context at least: of a gap's, a mode, one of text, the sentinel and the end."""


def fitted(model: TextModel, pair: Pair, n_more: int) -> Pair:
    """The pair, whose context has lost what does not fit the model's beside `n_more` tokens.

    The token that begins a context stays; an empty context is the token with which texts begin.
    """
    reader = model.prompts
    read = list(pair.read) or [model.start]
    room = max(LEAST_READ, reader.context - (0 if reader.has_encoder else n_more))
    n_head = int(read[0] in (reader.begin, *reader.special.modes))
    n_lost = max(0, len(read) - room)
    return replace(pair, read=[*read[:n_head], *read[n_head + n_lost :]])


def answers(
    model: TextModel,
    contexts: Sequence[str],
    n_tokens: int,
    until: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[str]:
    """The text after each context, up to the first of the strings `until`, and at most about `n_tokens` long.

    The names of special tokens in a context are text. Where the model fills gaps, the answer is what fills one at the
    end of the context. A decoder's answer also ends where its context does, of which a prompt takes at most all but
    half.
    """
    stops = [stop for stop in until if stop]
    found: list[str] = []
    for first in range(0, len(contexts), AT_ONCE):
        some = [_Answer.to(model, context, n_tokens, stops) for context in contexts[first : first + AT_ONCE]]
        _write(model, some, temperature, top_p, first)
        found += [answer.cut() for answer in some]
    return found


@dataclass
class _Answer:
    """An answer that is being written."""

    pair: Pair
    n_left: int
    """Tokens that may follow."""
    stops: list[str]
    spelling: Spelling
    text: str = ""
    is_over: bool = field(init=False, default=False)

    @classmethod
    def to(cls, model: TextModel, context: str, n_tokens: int, stops: list[str]) -> "_Answer":
        reader = model.prompts
        begin = [] if reader.begin is None else [reader.begin]
        pair = reader.pair([*begin, *reader.ids_of(context)], [])
        n_tokens += len(pair.lead)
        pair = fitted(model, pair, min(n_tokens, reader.context // 2))
        room = n_tokens if reader.has_encoder else min(n_tokens, reader.context - len(pair.read))
        return cls(pair, room, stops, Spelling(reader.tokenizer, {}))

    def take(self, token: int, ends: frozenset[int]) -> None:
        """One more token."""
        self.n_left -= 1
        if token not in self.pair.lead:
            self.is_over = token in ends
            self.text += "" if self.is_over else self.spelling.piece(token)
        self.is_over |= not self.n_left or any(stop in self.text for stop in self.stops)

    def cut(self) -> str:
        """What stands before the first of the strings that end it."""
        text = self.text + self.spelling.rest()
        for stop in self.stops:
            text = text.split(stop)[0]
        return text


def _write(model: TextModel, some: Sequence[_Answer], temperature: float, top_p: float, seed: int) -> None:
    ends = model.stops | frozenset(model.prompts.special.names())
    steps = generate(
        model.model,
        [answer.pair.read for answer in some],
        max(answer.n_left for answer in some),
        temperature,
        top_p,
        [seed + n for n in range(len(some))],
        ends - {token for answer in some for token in answer.pair.lead},
        [answer.pair.both_ways for answer in some],
        model.start,
    )
    for tokens in steps:
        for answer, token in zip(some, tokens, strict=True):
            if token is not None and not answer.is_over:
                answer.take(token, ends)
        if all(answer.is_over for answer in some):
            return
