"""Text from a model: tokens decoded as they come."""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from bushcraft.data.manifest import DatasetManifest
from bushcraft.model.generate import generate
from bushcraft.model.transformer import Decoder
from bushcraft.store.depot import Depot

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for the first bytes of a character whose last bytes are in the next token."""


@dataclass(frozen=True)
class TextModel:
    """A model with what is needed to speak to it."""

    model: Decoder
    tokenizer: Tokenizer
    separator: int
    reads_prompts_both_ways: bool
    """Whether it was trained on prefixes, as which it then takes a prompt."""

    @classmethod
    def of(cls, model: Decoder, depot: Depot, dataset: DatasetManifest, objective: str) -> "TextModel":
        """The model with the tokenizer of the data set and the kind of objective that it was trained on."""
        tokenizer = Tokenizer.from_buffer(depot.read(dataset.tokenizer))
        tokenizer.encode_special_tokens = True
        return cls(model, tokenizer, dataset.separator_id, objective == "prefix")

    def continuation(self, prompt: str, n_tokens: int, temperature: float, top_p: float, seed: int) -> Iterator[str]:
        """Go on with `prompt` until the document ends or `n_tokens` are there; pieces of text."""
        ids = [self.separator, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
        pending: list[int] = []
        both_ways, stops = self.reads_prompts_both_ways, {self.separator}
        for (token,) in generate(self.model, [ids], n_tokens, temperature, top_p, [seed], stops, both_ways):
            if token is None or token == self.separator:
                break
            pending.append(token)
            text = self.tokenizer.decode(pending, skip_special_tokens=False)
            if not text.endswith(UNFINISHED):
                yield text
                pending = []
        if pending:
            yield self.tokenizer.decode(pending, skip_special_tokens=False)
