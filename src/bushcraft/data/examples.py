"""Instruction data: rows of prompts and answers → text with the answers marked → tokens with the answers marked.

Text between rows and tokens is UTF-8 with the two bytes `BEGIN` and `END`, which UTF-8 never uses, around each answer.
So an example goes through a build as any other document does.

    prompt BEGIN answer END prompt BEGIN answer END
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bushcraft.data.chat_template import ROLES, ChatTemplate, Message, Turn, check_content
from bushcraft.data.manifest import ExampleFormat
from bushcraft.data.tokenizer import TextTokenizer
from bushcraft.errors import DataError
from bushcraft.store.depot import Depot

BEGIN, END = b"\xfe", b"\xff"
_MARKS = re.compile(b"([\xfe\xff])")
_FORMS = '{"messages": […]}, {"prompt": …, "target": …} or {"instruction": …, "input": …, "output": …}'


@dataclass(frozen=True)
class ExampleSettings:
    """What besides the rows decides on the examples."""

    template: ChatTemplate | None = None
    longest: int | None = None
    """Examples of more tokens are left out; the separator in front is not counted, the marks are."""


@dataclass(frozen=True)
class ExampleReader:
    """JSON rows → marked text → tokens."""

    settings: ExampleSettings
    special: frozenset[str]
    """Names of special tokens, which no message may hold where a template may write them."""

    def read(self, row: object) -> bytes:
        """The marked text of a row. Errors: `DataError`."""
        turns = self._turns(row)
        return b"".join(turn.prompt.encode() + BEGIN + turn.answer.encode() + END for turn in turns)

    def encode(self, marked: bytes, tokenizer: TextTokenizer) -> NDArray[np.uint32] | None:
        """The separator, then the tokens of marked text, each answer between marks: what `objectives.sft` reads.

        None if it is longer than the settings allow. A separator that the template writes at the beginning is not
        doubled. Prompts and answers are encoded apart, as generation meets them.
        """
        encode = tokenizer.encode_special if self.settings.template else tokenizer.encode
        marks = dict(zip((BEGIN, END), target_marks(tokenizer), strict=True))
        parts = [
            np.array([marks[part]], np.uint32) if part in marks else encode(part)
            for part in _MARKS.split(marked)
            if part
        ]
        tokens = np.concatenate(parts)
        if tokens[0] != tokenizer.separator_id:
            tokens = np.concatenate([np.array([tokenizer.separator_id], np.uint32), tokens])
        longest = self.settings.longest
        return tokens if longest is None or len(tokens) - 1 <= longest else None

    def _turns(self, row: object) -> list[Turn]:
        template = self.settings.template
        if not isinstance(row, dict):
            raise DataError("the line is not a JSON object", f"Write {_FORMS}")
        if "messages" in row:
            if template is None:
                raise DataError("messages need a chat template", "Name it by --chat-template")
            return template.turns(self._checked(row["messages"]))
        prompt, answer = _pair(row)
        if template is None:
            return [Turn(prompt, answer)]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return template.turns(self._checked(messages))

    def _checked(self, messages: object) -> list[Message]:
        if not isinstance(messages, list) or not messages:
            raise DataError("'messages' is no list of messages", f"Write {_FORMS}")
        for number, message in enumerate(messages, 1):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise DataError(f"message {number} has no role and content", 'Write {"role": …, "content": …}')
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise DataError(f"message {number} has the unknown role {role!r}", f"Use one of {', '.join(ROLES)}")
            if not isinstance(content, str):
                raise DataError(f"the content of message {number} is {type(content).__name__}, not text", "Write text")
            if role == "assistant" and not content.strip():
                raise DataError(f"message {number}, the assistant's, is empty", "Leave the example out")
            check_content(content, self.special, f"message {number}")
        if messages[-1]["role"] != "assistant":
            raise DataError("the last message is not the assistant's", "Leave out what has no answer")
        return messages


def plain(marked: bytes) -> bytes:
    """Marked text without its marks."""
    return marked.translate(None, BEGIN + END)


def target_marks(tokenizer: TextTokenizer) -> tuple[int, int]:
    """The ids of the marks before and behind an answer: the first two above the vocabulary."""
    return tokenizer.vocab_size, tokenizer.vocab_size + 1


def example_format(
    depot: Depot, settings: ExampleSettings, tokenizer: TextTokenizer, longest: int, longest_name: str
) -> ExampleFormat:
    """What the manifest says of examples; the template is put into the depot. Errors: `DataError` if there are none."""
    if not longest:
        raise DataError(f"no example has at most {settings.longest} tokens", "Use a larger --longest")
    template = depot.put_bytes(settings.template.to_json()) if settings.template else None
    return ExampleFormat(*target_marks(tokenizer), longest, longest_name, template)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of a row without messages."""
    if "prompt" in row:
        names = ("prompt", "target")
    elif "instruction" in row:
        names = ("instruction", "output")
    else:
        known = ", ".join(map(repr, row)) or "nothing"
        raise DataError(
            f"there is neither 'messages' nor 'prompt' nor 'instruction' (there is {known})", f"Write {_FORMS}"
        )
    for name in names:
        if name not in row:
            raise DataError(f"there is {names[0]!r}, but no {name!r}", f"Write {_FORMS}")
    context = row.get("input", "") if names[0] == "instruction" else ""
    for name, value in zip((*names, "input"), (row[names[0]], row[names[1]], context), strict=True):
        if not isinstance(value, str):
            raise DataError(f"{name!r} is {type(value).__name__}, not text", f"Write {_FORMS}")
    if not row[names[1]].strip():
        raise DataError(f"{names[1]!r} is empty", "Leave the example out")
    return f"{row[names[0]]}\n\n{context}" if context else row[names[0]], row[names[1]]
