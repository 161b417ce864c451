"""Training a byte-level BPE tokenizer; the same text gives the same tokenizer.

Source: Sennrich et al. 2016 (arXiv:1508.07909); bytes as the alphabet and the pre-tokenisation of
Radford et al. 2019 (GPT-2), section 2.2.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bushcraft.data.tokenizer import TextTokenizer, load_tokenizer
from bushcraft.errors import DataError

SEPARATOR = "<|endoftext|>"
SMALLEST_VOCABULARY = 257


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A tokenizer of up to `vocab_size` tokens: `<|endoftext|>` is 0, then the 256 bytes, then the merges.

    A small corpus may give fewer. Errors: `DataError` if there is no room for the bytes.
    """
    check_vocab_size(vocab_size)
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return load_tokenizer(engine.to_str().encode(), SEPARATOR)


def check_vocab_size(vocab_size: int) -> None:
    """Errors: `DataError` if the bytes and the separator do not fit."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"--vocab-size {vocab_size} has no room for 256 bytes and a separator", f"At least {SMALLEST_VOCABULARY}"
        )
    if vocab_size > 1 << 20:
        raise DataError(f"--vocab-size {vocab_size} cannot be trained here", "Choose at most 1048576")
