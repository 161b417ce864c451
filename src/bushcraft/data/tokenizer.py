"""A tokenizer.json, checked for what training needs: it loses nothing, and text cannot forge a separator.

Format: Hugging Face `tokenizers`. Any such file is taken whose tokens spell the text that they came from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from bushcraft.data.streams import pieces
from bushcraft.errors import DataError

SEPARATORS = (
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<bos>",
    "<s>",
    "<eos>",
    "</s>",
    "<|startoftext|>",
    "[CLS]",
    "[SEP]",
)
"""What is taken for the separator of documents, the first that there is."""
PIECE_BYTES = 1 << 18
"""Long documents are encoded in pieces: a token takes some 100 bytes of memory while it is made."""
PROBE = (
    "".join(map(chr, range(32, 127)))
    + "\n\tdef f(x):\n\t\treturn {'ä': x  +   1}\r\n\n\n# Ünïcödé: Ελληνικά, русский, 中文, العربية, 日本語, 🙂🏕\n"
)
"""What a tokenizer must give back unchanged."""


@dataclass(frozen=True)
class TextTokenizer:
    """Bytes of UTF-8 text ↔ token ids."""

    json: bytes
    """The canonical tokenizer.json."""
    separator: str
    separator_id: int
    vocab_size: int
    """One more than the largest id."""

    @property
    def fingerprint(self) -> str:
        """BLAKE3 of the canonical JSON: equal fingerprints give equal tokens."""
        return blake3(self.json).hexdigest()

    @property
    def itemsize(self) -> int:
        """Bytes of a token id in packs: 2 or 4."""
        return token_itemsize(self.vocab_size)

    def encode(self, text: bytes) -> NDArray[np.uint32]:
        """Token ids of `text`, without a separator. The name of a special token in it is ordinary text."""
        engine = _engine(self.json)
        parts = [_encode(engine, piece) for piece in pieces(text, PIECE_BYTES)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def encode_special(self, text: bytes) -> NDArray[np.uint32]:
        """Token ids of `text`, in which the names of special tokens are these tokens: only for text that is trusted."""
        return _encode(_engine(self.json, names_are_text=False), text)  # whole: a cut could part a name

    @property
    def special_names(self) -> frozenset[str]:
        """The names of the special tokens."""
        return special_names(_engine(self.json))

    def decode(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """The text of token ids; special tokens by their names."""
        text: str = _engine(self.json).decode(list(map(int, tokens)), skip_special_tokens=False)
        return text


def load_tokenizer(data: bytes, separator: str | None = None, where: str = "the tokenizer") -> TextTokenizer:
    """The tokenizer of a tokenizer.json; `separator`: the name of its token between documents.

    Errors: `DataError`, which calls the tokenizer `where`, if it is none, has no separator, or loses text.
    """
    try:
        engine = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{where} is not a tokenizer.json: {error}", "Name a file saved by `tokenizers`") from None
    vocabulary = engine.get_vocab(with_added_tokens=True)
    chosen = separator or next((name for name in SEPARATORS if name in vocabulary), None)
    if chosen is None:
        raise DataError(
            f"{where} has no token to part documents (none of {' '.join(SEPARATORS)})", "Name one by --separator"
        )
    if chosen not in vocabulary:
        raise DataError(f"{where} has no token {chosen!r}", "Name another one by --separator")
    engine.no_truncation()
    engine.no_padding()
    engine.add_special_tokens([AddedToken(chosen, special=True, normalized=False)])
    tokenizer = TextTokenizer(
        json=canonical(engine.to_str()),
        separator=chosen,
        separator_id=vocabulary[chosen],
        vocab_size=max(vocabulary.values()) + 1,
    )
    token_itemsize(tokenizer.vocab_size)
    _check(tokenizer, where)
    return tokenizer


def special_names(engine: Tokenizer) -> frozenset[str]:
    """The names of a tokenizer's special tokens."""
    return frozenset(token.content for token in engine.get_added_tokens_decoder().values() if token.special)


def canonical(document: str) -> bytes:
    """JSON with sorted keys and no blanks."""
    return json.dumps(json.loads(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def token_itemsize(vocab_size: int) -> int:
    """Bytes that an id of such a vocabulary takes: 2 or 4. Errors: `DataError` above 2^32."""
    if vocab_size > 1 << 32:
        raise DataError(f"a vocabulary of {vocab_size:,} does not fit 32 bits", "Use a smaller tokenizer")
    return 2 if vocab_size <= 1 << 16 else 4


@lru_cache(maxsize=4)
def _engine(data: bytes, names_are_text: bool = True) -> Tokenizer:
    engine = Tokenizer.from_str(data.decode())
    engine.encode_special_tokens = names_are_text  # not kept in the file
    return engine


def _encode(engine: Tokenizer, text: bytes) -> NDArray[np.uint32]:
    return np.array(engine.encode_batch_fast([text.decode()], add_special_tokens=False)[0].ids, np.uint32)


def _check(tokenizer: TextTokenizer, where: str) -> None:
    restored = tokenizer.decode(tokenizer.encode(PROBE.encode()))
    if restored != PROBE:
        place = next((i for i, (a, b) in enumerate(zip(PROBE, restored, strict=False)) if a != b), len(restored))
        raise DataError(
            f"{where} loses text: {PROBE[place : place + 12]!r} comes back as {restored[place : place + 12]!r}",
            "Use a byte-level tokenizer (as those of GPT-2, Llama 3, Qwen), or leave out --tokenizer to train one",
        )
    if tokenizer.separator_id in tokenizer.encode(f"a {tokenizer.separator} b".encode()):
        raise DataError(
            f"{where} reads the text {tokenizer.separator!r} as its separator, so that a text could forge one",
            "Use a tokenizer whose separator is a special token only, or another --separator",
        )
