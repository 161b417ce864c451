"""What a user decides about a data set, checked before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bushcraft.data.examples import ExampleReader, ExampleSettings
from bushcraft.data.sources import Source
from bushcraft.data.tokenizer import load_tokenizer
from bushcraft.data.tokenizer_training import SEPARATOR, check_vocab_size
from bushcraft.errors import DataError


@dataclass(frozen=True)
class BuildSettings:
    """What besides the input decides what comes out."""

    column: str = "text"
    heldout_fraction: float = 0.08
    heldout_bytes: int = 32 << 20
    vocab_size: int = 4096
    tokenizer: bytes | None = None
    """A tokenizer.json; trained on the input if None."""
    separator: str | None = None
    skip_bad: bool = False
    keep_copies: bool = False
    instructions: ExampleSettings | None = None
    """Rows are prompts and answers; texts if None."""

    def check(self) -> None:
        """Errors: `DataError` for settings that cannot be."""
        if self.instructions and self.instructions.template:
            self.instructions.template.check()
        if not 0 <= self.heldout_fraction <= 0.5:
            raise DataError(f"--heldout {self.heldout_fraction} is no share of the documents", "Choose 0 to 0.5")
        if self.tokenizer is None:
            check_vocab_size(self.vocab_size)
        else:
            load_tokenizer(self.tokenizer, self.separator, "the file given by --tokenizer")

    def check_sources(self, sources: Sequence[Source]) -> None:
        """Errors: `DataError` for files in which there are no rows, where rows are wanted."""
        for source in sources:
            if self.instructions and source.kind != "jsonl":
                raise DataError(f"--instructions reads JSON lines, and {source.path} is none", "Name .jsonl files only")

    def examples(self) -> ExampleReader | None:
        """How rows become examples, if they do."""
        if self.instructions is None:
            return None
        separator, special = SEPARATOR, frozenset({SEPARATOR})
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer, self.separator)
            separator, special = tokenizer.separator, tokenizer.special_names
        template = self.instructions.template and self.instructions.template.with_separator(separator)
        return ExampleReader(replace(self.instructions, template=template), special)
