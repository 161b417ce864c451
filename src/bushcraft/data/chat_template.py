"""Chat templates: conversations → the text of prompts and answers.

Format: the Jinja2 templates of Hugging Face `transformers` (`chat_template` in tokenizer_config.json), in the same
sandbox and with the same variables, but for `strftime_now`: its clock stands still, so that a data set does not depend
on the day on which it is built.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bushcraft.errors import DataError

NOW = datetime(2024, 7, 26)
"""What `strftime_now` formats; Llama 3 falls back on the same day where there is no clock."""
ROLES = ("system", "user", "assistant")
Message = dict[str, str]
"""role and content."""


@dataclass(frozen=True)
class Turn:
    """One answer, and what stands between it and the answer before."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the names of the tokens that it may write."""

    source: str
    where: str = "of the data set"
    """How messages call it."""
    bos_token: str | None = None
    eos_token: str | None = None
    """None where nothing was said about it; see `with_separator`."""

    def with_separator(self, separator: str) -> "ChatTemplate":
        """A template that came without a word about its tokens begins and ends texts as the data set does."""
        begin, end = (separator if token is None else token for token in (self.bos_token, self.eos_token))
        return replace(self, bos_token=begin, eos_token=end)

    def check(self) -> None:
        """Errors: `DataError` if it is no Jinja2 template."""
        _compiled(self.source, self.where)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation; with the beginning of an answer at its end. Errors: `DataError`."""
        template = _compiled(self.source, self.where)
        try:
            return template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                bos_token=self.bos_token or "",
                eos_token=self.eos_token or "",
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template may evaluate anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"the chat template {self.where} fails: {reason}", "Correct the messages, or use another template"
            ) from None

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """Each answer of the assistant with the text before it; together they are the text of all messages.

        Errors: `DataError` where the text of fewer messages is not the beginning of the text of more, or where an
        answer is not in it.
        """
        turns: list[Turn] = []
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], add_generation_prompt=True)
            text = self.render(messages[: i + 1])
            if not before.startswith(done) or not text.startswith(before):
                raise DataError(
                    f"the chat template {self.where} does not write the messages before answer {len(turns) + 1} as it "
                    "writes them without it, so that the answer cannot be told from the prompt",
                    "Use a template that only appends, such as ChatML",
                )
            twice = {"role": "assistant", "content": f"{message['content']}\n{message['content']}"}
            if text == before or text == self.render([*messages[:i], twice]):
                raise DataError(f"the chat template {self.where} leaves out answer {len(turns) + 1}", "Correct it")
            turns.append(Turn(before[len(done) :], text[len(before) :]))
            done = text
        return turns

    def closing(self) -> str:
        """What it writes behind an answer, if anything. Errors: `DataError`."""
        text = self.render([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}])
        _, found, after = text.rpartition("Hello.")
        return after.strip() if found else ""

    def to_json(self) -> bytes:
        """As in tokenizer_config.json, for the store."""
        about = {"chat_template": self.source, "bos_token": self.bos_token, "eos_token": self.eos_token}
        return json.dumps(about, sort_keys=True).encode()


def load_chat_template(path: Path) -> ChatTemplate:
    """The template of a file that is one, of a tokenizer_config.json, or of a folder with one of these.

    Errors: `DataError` if there is none, or it is no Jinja2 template.
    """
    if path.is_dir():
        config = path / "tokenizer_config.json"
        template = _from_config(_read(config), str(config)) if config.exists() else None
        alone = path / "chat_template.jinja"
        if alone.exists():
            about = template or ChatTemplate("")
            template = replace(about, source=_read_text(alone), where=str(alone))
    elif path.suffix == ".json":
        template = _from_config(_read(path), str(path))
    else:
        template = ChatTemplate(_read_text(path), str(path))
    if template is None or not template.source:
        raise DataError(f"there is no chat template in {path}", "Name a Jinja2 file, or a tokenizer_config.json")
    template.check()
    return template


def check_content(content: str, special: Iterable[str], what: str) -> None:
    """Errors: `DataError`, which calls the message `what`, if it holds a name that only a template may write."""
    if forged := next((name for name in special if name in content), None):
        raise DataError(
            f"{what} holds {forged!r}, the name of a special token, which only a template may write",
            "Leave it out, or take the name out of it",
        )


def from_json(data: bytes) -> ChatTemplate:
    """What `ChatTemplate.to_json` wrote."""
    about = json.loads(data)
    return ChatTemplate(about["chat_template"], bos_token=about["bos_token"], eos_token=about["eos_token"])


def _from_config(data: bytes, where: str) -> ChatTemplate:
    """The template of a tokenizer_config.json; without text if it has none."""
    try:
        config = json.loads(data)
        found = config.get("chat_template") or ""
        if isinstance(found, list):
            found = _default({entry["name"]: entry["template"] for entry in found}, where)
        begin, end = (_token(config.get(name)) for name in ("bos_token", "eos_token"))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise DataError(f"{where} is not a tokenizer_config.json", "Name the file of the tokenizer") from None
    return ChatTemplate(str(found), where, begin, end)


def _default(named: dict[str, Any], where: str) -> Any:
    """Of several templates that for a plain conversation."""
    if "default" not in named:
        raise DataError(
            f"{where} has no chat template called 'default' (it has {', '.join(map(str, named))})",
            "Save the one to use as a file, and name that by --chat-template",
        )
    return named["default"]


def _token(value: Any) -> str:
    """A token's name in a tokenizer_config.json: text, or an object with its `content`."""
    return str((value.get("content") if isinstance(value, dict) else value) or "")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "Name a file or folder by --chat-template") from None


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"the chat template {path} is not UTF-8 at byte {error.start}", "Convert it (`iconv -t UTF-8`)"
        ) from None


class _Generation(Extension):
    """`{% generation %}`, which marks answers for others: what is inside is written as it is."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compiled(source: str, where: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": NOW.strftime}
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise DataError(
            f"the chat template {where} is not Jinja2, at its line {error.lineno}: {error.message}", "Correct it"
        ) from None


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As in `transformers`: Jinja2's own would escape what HTML reserves."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
