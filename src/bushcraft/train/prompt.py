"""How a text is put to a model: in the form in which its objective showed it texts.

A model that goes on with texts gets a begin token and the text. A denoiser gets what it got in training: a mode token
if it knows modes, the text with sentinels where something is to be filled in, an end token.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from bushcraft.data.chat_template import ChatTemplate, check_content
from bushcraft.data.tokenizer import special_names
from bushcraft.errors import DataError
from bushcraft.objectives.special import SpecialTokens
from bushcraft.objectives.ul2 import R, S
from bushcraft.train.objective_config import DENOISING, ObjectiveConfig
from bushcraft.train.scoring import Pair

SENTINEL = re.compile(r"(<extra_id_\d+>)")
SHOWN = 40
"""Characters of a prompt in a message."""


@dataclass(frozen=True)
class Prompt:
    """A text as a model reads it."""

    text: str
    ids: list[int]
    is_prefix: bool
    """Whether a decoder reads it both ways."""
    is_continued: bool = True
    """Whether what follows goes on with the text; else it fills gaps, or answers."""

    @property
    def shown(self) -> str:
        """The text in front of what follows."""
        return self.text if self.is_continued else f"{self.text}\n"

    def __str__(self) -> str:
        return repr(self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…")


@dataclass(frozen=True)
class Form:
    """What a model's objective showed it."""

    continues: bool = True
    """Whether texts had a rest that was asked for without a sentinel."""
    is_prefix: bool = False
    """Whether a decoder read them both ways."""
    gaps_are_prefixes: bool = False
    """Whether a decoder read texts with gaps both ways."""

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> "Form":
        """The form of an objective; in a mixture a text to go on with is read both ways if any part does that."""
        plain = objective.kinds - set(DENOISING)
        return cls(
            continues=bool(plain),
            is_prefix=objective.prompts_both_ways and bool(plain - {"causal"}),
            gaps_are_prefixes=objective.prompts_both_ways,
        )


@dataclass(frozen=True)
class PromptReader:
    """Texts → prompts of one model."""

    tokenizer: Tokenizer
    begin: int | None
    """The token in front of a text; None where texts begin without one."""
    special: SpecialTokens
    """Without sentinels where the model was trained on no gaps."""
    form: Form
    context: int
    """Tokens of the longest text in training."""
    has_encoder: bool
    """Whether prompts go to an encoder; else a prompt and what follows share the context."""

    def read(self, text: str, n_tokens: int = 1) -> Prompt:
        """The prompt of a text, after which `n_tokens` are to follow.

        Without a sentinel it is a text to go on with; for a model that knows no such texts a first sentinel is put at
        its end. Where the model knows modes and the text begins with none, it gets the sequential one if the sentinel
        was put there, else the regular one.
        Errors: `DataError` if the text is nothing, has a sentinel that the model has not, or does not fit the context.
        """
        parts = list(self._parts(text))
        if self.form.continues and all(isinstance(part, str) for part in parts):
            prompt = Prompt(text, [*self._begin(), *self.ids_of(text)], self.form.is_prefix)
        else:
            parts = self._with_gap(parts)
            ids = [token for part in parts for token in (self.ids_of(part) if isinstance(part, str) else [part])]
            prompt = Prompt(text, [*ids, self.special.separator], self.form.gaps_are_prefixes, is_continued=False)
        self._check_length(prompt, n_tokens)
        return prompt

    def read_chat(self, text: str, template: ChatTemplate, n_tokens: int = 1) -> Prompt:
        """The prompt of a user's message, up to where the answer begins; `n_tokens` as of `read`.

        Errors: `DataError` if the template fails, if the message holds the name of a special token, or if the prompt
        does not fit the context.
        """
        check_content(text, special_names(self.tokenizer), f"prompt {Prompt(text, [], False)}")
        ids = self._encode_names(template.render([{"role": "user", "content": text}], add_generation_prompt=True))
        begin = [] if ids[:1] == self._begin() else self._begin()
        prompt = Prompt(text, [*begin, *ids], self.form.is_prefix, is_continued=False)
        self._check_length(prompt, n_tokens)
        return prompt

    def pair(self, context: list[int], predicted: list[int]) -> Pair:
        """The ids of a text, which may begin with the separator, and those that go on with it, as a pair to score."""
        if self.form.continues:
            return Pair(context or self._begin(), predicted, both_ways=self.form.is_prefix)
        sentinel = int(self.special.sentinels[0])
        text = context[1:] if context[:1] == [self.special.separator] else context
        read = [*self.special.modes[S : S + 1], *text, sentinel, self.special.separator]
        return Pair(read, predicted, lead=(sentinel,), both_ways=self.form.gaps_are_prefixes)

    def text_pair(self, context: str, predicted: str) -> Pair:
        """A context and what goes on with it, as a pair to score; both are encoded together, then parted.

        So a token that joins the end of the one with the beginning of the other belongs to what is predicted.
        """
        whole, alone = self.ids_of(context + predicted), self.ids_of(context)
        n_context = min(len(alone), len(whole) - 1)
        while whole[:n_context] != alone[:n_context]:
            n_context -= 1
        return self.pair([*self._begin(), *whole[:n_context]], whole[n_context:])

    @property
    def goes_on(self) -> bool:
        """Whether training showed texts whose end was to be predicted; a model that only fills gaps was not."""
        return self.form.continues or bool(self.special.modes)

    def answer_ends(self, template: ChatTemplate) -> frozenset[int]:
        """The special token by which a template closes an answer, if it does. Errors: `DataError`."""
        first = self._encode_names(template.closing())[:1]
        return frozenset(t for t in first if self.tokenizer.id_to_token(t) in special_names(self.tokenizer))

    def room(self, prompt: Prompt) -> int | None:
        """Tokens that may follow; None for any number."""
        return None if self.has_encoder else self.context - len(prompt.ids)

    def _begin(self) -> list[int]:
        return [] if self.begin is None else [self.begin]

    def ids_of(self, text: str) -> list[int]:
        """The tokens of a text, in which the name of a special token is text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_names(self, text: str) -> list[int]:
        """As `_encode`, but names of special tokens are these tokens."""
        ids: list[int] = self._engine_of_names.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _engine_of_names(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer.to_str())  # which does not keep `encode_special_tokens`

    def _parts(self, text: str) -> Iterator[str | int]:
        """Stretches of text, and the ids of what is no text: sentinels, and a mode token at the beginning."""
        ids = {name: token for token, name in self.special.names().items()}
        mode = next((name for name in self.special.mode_names if text.startswith(name)), "")
        if mode:
            yield ids[mode]
        for part in filter(None, SENTINEL.split(text[len(mode) :])):
            if SENTINEL.fullmatch(part) and part not in ids:
                raise self._unknown_sentinel(text, part)
            yield ids[part] if SENTINEL.fullmatch(part) else part

    def _with_gap(self, parts: list[str | int]) -> list[str | int]:
        sentinels: list[int] = self.special.sentinels.tolist()
        has_gap = any(part in sentinels for part in parts)
        if self.special.modes and (not parts or parts[0] not in self.special.modes):
            parts = [self.special.modes[R if has_gap else S], *parts]
        return parts if has_gap else [*parts, sentinels[0]]

    def _unknown_sentinel(self, text: str, name: str) -> DataError:
        n = len(self.special.sentinels)
        has = f"has <extra_id_0> to <extra_id_{n - 1}>" if n else "was trained without sentinels"
        return DataError(
            f"prompt {Prompt(text, [], False)} has {name}, but the model {has}",
            "Use one of these" if n else "Leave it out, or use a run whose objective hides spans",
        )

    def _check_length(self, prompt: Prompt, n_tokens: int) -> None:
        n, room = len(prompt.ids), self.room(prompt)
        if n == 0:
            raise DataError("the prompt is empty, and no token begins the model's texts", "Give a text to go on with")
        if n > self.context or (room is not None and room < 1):
            raise DataError(
                f"prompt {prompt} has {n} tokens, and the model was trained on texts of {self.context}",
                f"Shorten it by {n - self.context + (not self.has_encoder)} tokens or more",
            )
        if room is not None and room < n_tokens:
            raise DataError(
                f"prompt {prompt} has {n} tokens; with {n_tokens} more it is longer than the {self.context} tokens of "
                "the texts that the model was trained on",
                f"Generate at most {room} tokens, or shorten it",
            )
