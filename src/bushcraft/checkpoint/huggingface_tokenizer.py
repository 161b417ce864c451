"""The tokenizer of a Hugging Face folder: `tokenizer.json`, and what `transformers` wants to know beside it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bushcraft.checkpoint.huggingface_files import json_file, read_file, write_json
from bushcraft.data.tokenizer import canonical
from bushcraft.errors import CheckpointError

PAD = "<pad>"
NO_PAD = -1
"""A padding token that is no token, for a model that must name one and has no room for it."""


@dataclass(frozen=True)
class TextSide:
    """How a model reads and writes text."""

    tokenizer: bytes
    """A tokenizer.json."""
    begin: int | None
    """The token in front of a text, if there is one."""
    ends: tuple[int, ...]
    """The tokens that end a text."""
    chat_template: str | None = None
    puts_begin: bool = False
    """Whether the tokenizer is to be told to put that token there, which it may do already."""
    names: tuple[tuple[int, str], ...] = ()
    """Special tokens that the tokenizer does not know, with their ids, which follow on its own."""


def read_tokenizer(folder: Path, vocab_size: int) -> bytes:
    """The canonical tokenizer.json of a folder.

    Errors: `CheckpointError` if there is none, or it has tokens for which the model has no embedding.
    """
    path = folder / "tokenizer.json"
    try:
        engine = Tokenizer.from_str(read_file(path).decode())
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{path} is not a tokenizer.json: {error}", "Copy it again") from None
    largest = max(engine.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} has the token {largest}, config.json has vocab_size = {vocab_size}",
            "Use the tokenizer that the model was trained with",
        )
    engine.no_truncation()
    engine.no_padding()
    return canonical(engine.to_str())


def without_begin(tokenizer: bytes) -> bytes:
    """The canonical tokenizer.json without what `TextSide.puts_begin` adds: that of the data set of such a model."""
    document = json.loads(tokenizer)
    processor = document["post_processor"] or {}
    if processor.get("type") == "TemplateProcessing":
        name = next(iter(processor["special_tokens"]), None)
        number = Tokenizer.from_buffer(tokenizer).token_to_id(name) if name else None
        if processor == _begins_with(name, number):
            document["post_processor"] = None
    return canonical(json.dumps(document))


def read_chat_template(folder: Path) -> str | None:
    """The template of `chat_template.jinja` or of `tokenizer_config.json`, if there is one."""
    if (folder / "chat_template.jinja").is_file():
        return read_file(folder / "chat_template.jinja").decode()
    if not (folder / "tokenizer_config.json").is_file():
        return None
    found = json_file(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found if isinstance(found, str) else None


def padding(text: TextSide, vocab_size: int) -> tuple[TextSide, int]:
    """The text's side with a padding token, and its id: the tokenizer's own, else the next id that is free."""
    engine = Tokenizer.from_buffer(text.tokenizer)
    own = engine.token_to_id(PAD)
    if own is not None:
        return text, own
    free = 1 + max(*engine.get_vocab(with_added_tokens=True).values(), *(token for token, _ in text.names))
    if free >= vocab_size:
        return text, NO_PAD
    return dataclasses.replace(text, names=(*text.names, (free, PAD))), free


def write_tokenizer(folder: Path, text: TextSide, context: int, is_decoder: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`. Errors: OSError."""
    document = json.loads(text.tokenizer)
    engine = Tokenizer.from_buffer(text.tokenizer)
    document["added_tokens"] += [_special_token(number, name) for number, name in text.names]
    names = dict(text.names)

    def name_of(token: int | None) -> str | None:
        return None if token is None else names.get(token) or engine.id_to_token(token)

    begin, end = name_of(text.begin), name_of(text.ends[0] if text.ends else None)
    if text.puts_begin and document["post_processor"] is None:
        document["post_processor"] = _begins_with(begin, text.begin)
    (folder / "tokenizer.json").write_bytes(canonical(json.dumps(document)))
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "pad_token": PAD if PAD in names.values() or engine.token_to_id(PAD) is not None else end,
        "padding_side": "left" if is_decoder else "right",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if text.chat_template is not None:
        about["chat_template"] = text.chat_template
    write_json(folder / "tokenizer_config.json", about)


def _special_token(number: int, name: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _begins_with(name: str | None, number: int | None) -> dict[str, Any]:
    """The post-processor that puts a token in front of a text."""
    token, text_a, text_b = (
        {"SpecialToken": {"id": name, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    return {
        "type": "TemplateProcessing",
        "single": [token, text_a],
        "pair": [token, text_a, token, text_b],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
