"""Text from a model: prompts in, tokens spelled as they come."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from bushcraft.checkpoint.manifest import TokenizerEntry
from bushcraft.data.manifest import DatasetManifest
from bushcraft.model.generate import generate
from bushcraft.model.transformer import Decoder, Model
from bushcraft.store.depot import Depot
from bushcraft.train.objective import objective_tokens
from bushcraft.train.prompt import Form, Prompt, PromptReader
from bushcraft.train.recipe import Recipe

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for the first bytes of a character whose last bytes are in the next token."""
AT_ONCE = 32
"""Prompts that are read together; more of them would take more memory, and change no text."""


@dataclass(frozen=True)
class TextModel:
    """A model with what is needed to speak to it."""

    model: Model
    prompts: PromptReader
    start: int
    """The token with which the decoder of an encoder-decoder begins."""
    stops: frozenset[int]
    """The tokens that end a text."""

    @classmethod
    def of(
        cls,
        model: Model,
        depot: Depot,
        dataset: DatasetManifest,
        recipe: Recipe,
        imported: TokenizerEntry | None = None,
    ) -> "TextModel":
        """The model with the tokenizer of the data set and the objective that it was trained on.

        An imported model's texts begin and end as it was told elsewhere.
        """
        tokenizer = Tokenizer.from_buffer(depot.read(dataset.tokenizer))
        tokenizer.encode_special_tokens = True  # the name of one in a text is text
        reader = PromptReader(
            tokenizer=tokenizer,
            begin=dataset.separator_id if imported is None else imported.begin,
            special=objective_tokens(depot, dataset, recipe.objective),
            form=Form.of(recipe.objective),
            context=recipe.run.sequence_length,
            has_encoder=not isinstance(model, Decoder),
        )
        ends = (dataset.separator_id,) if imported is None else imported.ends
        return cls(model, reader, dataset.separator_id, frozenset(ends))

    def continuation(self, prompt: str, n_tokens: int, temperature: float, top_p: float, seed: int) -> Iterator[str]:
        """As `continuations`, of one text. Errors: `DataError` of `PromptReader.read`."""
        for _, piece in self.continuations([self.prompts.read(prompt)], n_tokens, temperature, top_p, seed):
            yield piece

    def continuations(
        self, prompts: Sequence[Prompt], n_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, str]]:
        """Pieces of text as they come, each with the number of its prompt.

        A text ends by itself, after `n_tokens`, or where the context does. Prompt n is drawn with `seed` + n: it gets
        what it gets alone with that seed. Sentinels and modes come by their names.
        """
        for first in range(0, len(prompts), AT_ONCE):
            some = prompts[first : first + AT_ONCE]
            for number, piece in self._together(some, n_tokens, temperature, top_p, seed + first):
                yield first + number, piece

    def _together(
        self, prompts: Sequence[Prompt], n_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, str]]:
        rooms = [self.prompts.room(prompt) for prompt in prompts]
        limits = [n_tokens if room is None else min(n_tokens, room) for room in rooms]
        names = self.prompts.special.names()
        spellings = [Spelling(self.prompts.tokenizer, names) for _ in prompts]
        steps = generate(
            self.model,
            [prompt.ids for prompt in prompts],
            max(limits),
            temperature,
            top_p,
            [seed + n for n in range(len(prompts))],
            self.stops,
            [prompt.is_prefix for prompt in prompts],
            self.start,
        )
        for step, tokens in enumerate(steps):
            for number, token in enumerate(tokens):
                if token is None or token in self.stops or step >= limits[number]:
                    continue
                if piece := spellings[number].piece(token):
                    yield number, piece
        for number, spelling in enumerate(spellings):
            if piece := spelling.rest():
                yield number, piece


@dataclass
class Spelling:
    """Tokens → text, as soon as their characters are whole."""

    tokenizer: Tokenizer
    names: Mapping[int, str]
    """Of tokens that are no text."""
    pending: list[int] = field(default_factory=list)

    def piece(self, token: int) -> str:
        """What can be read after one more token; it may be nothing."""
        if token in self.names:
            return self.rest() + self.names[token]
        self.pending.append(token)
        text: str = self.tokenizer.decode(self.pending, skip_special_tokens=False)
        if text.endswith(UNFINISHED):
            return ""
        self.pending = []
        return text

    def rest(self) -> str:
        """What is left, with a mark in place of a character that is not whole."""
        text: str = self.tokenizer.decode(self.pending, skip_special_tokens=False)
        self.pending = []
        return text
