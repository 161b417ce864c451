"""What the user wrote: a TOML file and `--set` values, as one table that knows where each value stands.

Nothing here knows the recipe's models: the table is checked in `recipe.py`, and what is wrong with it is told
here, in the user's terms: the dotted key, the value as written, its place, and which values would do.
"""

import copy
import json
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bushcraft.errors import RecipeError

Table = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: `place` is "recipes/tiny.toml:12" or "--set"; the other kinds have none."""

    kind: Literal["recipe", "override", "default", "derived"]
    place: str = ""

    def __str__(self) -> str:
        return self.place or self.kind


@dataclass(frozen=True)
class Override:
    """One `--set key=value`."""

    key: str
    value: Any


@dataclass(frozen=True)
class Written:
    """A table as the user wrote it, the origin of each of its dotted keys, and the name of its file."""

    table: Table
    origins: Mapping[str, Origin]
    source: str

    def place(self, key: str) -> str:
        return str(self.origins.get(key, self.source))


def read_toml(path: Path, name: str) -> Written:
    """The table of a TOML file; `name` is how messages call the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name} is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{name} cannot be read: {error.strerror}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
        reason, line, column = found.groups() if found else (str(error), None, None)
        place = f"{name}:{line or len(text.splitlines())}" + (f", column {column}" if column else "")
        raise RecipeError(f"{place}: not valid TOML: {reason}") from error
    origins = {key: Origin("recipe", f"{name}:{line}") for key, line in key_lines(text).items()}
    return Written(table, origins, name)


def key_lines(text: str) -> dict[str, int]:
    """The line, from 1, on which each dotted key of a valid TOML text starts.

    The parser itself tells: the lines up to a key's last one are a valid text that has the key, and the lines
    before its first one are a valid text that has not.
    """
    lines = text.split("\n")
    found: dict[str, int] = {}
    start = 1
    for number, line in enumerate(lines, 1):
        if start == number and (not line.strip() or line.lstrip().startswith("#")):
            start = number + 1
            continue
        try:
            table = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        for key in dotted_keys(table):
            found.setdefault(key, start)
        start = number + 1
    return found


def dotted_keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted key of every table and value."""
    for name, value in table.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{name}.")


def parse_override(text: str, text_keys: Iterable[str] = ()) -> Override:
    """`a.b=c`, where c is a TOML value, or else text without quotes; `text_keys` are always text (`run.name=7`)."""
    key, equals, written = (part.strip() for part in text.partition("="))
    if not equals or not key or not all(key.split(".")):
        raise RecipeError(
            f"--set {text} is not of the form key=value", "Write it as --set optimizer.learning_rate=0.001"
        )
    if not written:
        raise RecipeError(f"--set {text} gives no value", f"For empty text write --set '{key}=\"\"'")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError as error:
        if written[0] in "[{\"'":
            raise RecipeError(
                f"--set {text} is not a valid TOML value: {str(error).partition(' (at')[0]}",
                f'Text in a list needs double quotes, and the shell needs single ones around: \'{key}=["a", "b"]\'',
            ) from error
        return Override(key, written)
    value = parsed["value"] if len(parsed) == 1 else written
    is_number_as_text = not isinstance(value, str) and any(same_key(pattern, key) for pattern in text_keys)
    return Override(key, written if is_number_as_text else value)


def with_overrides(
    written: Written, overrides: Iterable[Override], alternatives: Sequence[tuple[str, ...]] = ()
) -> Written:
    """The table with the overrides in it; the last one of a key wins, and a table replaces a table.

    Of `alternatives`, keys of which only one may be given, an override also takes the file's others away.
    """
    table, origins = copy.deepcopy(written.table), dict(written.origins)

    def remove(key: str) -> None:
        *parents, name = key.split(".")
        parent: Any = table
        for part in parents:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(name, None)
        for stale in [other for other in origins if other == key or other.startswith(key + ".")]:
            del origins[stale]

    overrides = list(overrides)
    for override in overrides:
        for group in alternatives:
            for other in group if override.key in group else ():
                remove(other)
    for override in overrides:
        remove(override.key)
        *parents, name = override.key.split(".")
        parent = table
        for depth, part in enumerate(parents, 1):
            if not isinstance(parent.get(part), dict):
                parent[part] = {}
                origins[".".join(parents[:depth])] = Origin("override", "--set")
            parent = parent[part]
        parent[name] = override.value
        inside = dotted_keys(override.value, override.key + ".") if isinstance(override.value, dict) else ()
        origins |= {key: Origin("override", "--set") for key in (override.key, *inside)}
    return Written(table, origins, written.source)


def problems(errors: Iterable[ErrorDetails], written: Written, known: Mapping[str, FieldInfo]) -> list[str]:
    """One sentence for each thing that is wrong; `known` are the dotted keys, with `*` for any name."""
    sentences: list[str] = []
    meant: set[str] = set()
    for error in sorted(errors, key=lambda error: error["type"] == "missing"):
        names = [str(part) for part in error["loc"] if not isinstance(part, int)]
        key = ".".join(names)
        place = f"in {written.place(key)}"
        field = known.get(key) or next((known[k] for k in known if same_key(k, key)), None)
        if error["type"] == "extra_forbidden":
            value = error["input"]
            while isinstance(value, dict) and len(value) == 1:
                (name, value), *_ = value.items()
                key += f".{name}"
            suggestion = nearest_key(key, _spelled_out(known, written.table))
            meant.add(suggestion or "")
            hint = f"did you mean {suggestion}?" if suggestion else f"known keys are {_siblings(key, known)}"
            sentences.append(f"unknown key {key} {place}: {hint}")
        elif error["type"] == "missing" and not isinstance(error["loc"][-1], int):
            if not any(key == other or key.startswith(other + ".") for other in meant):
                meaning = f" ({field.description.rstrip('.')})" if field and field.description else ""
                sentences.append(f"{key} is missing in {written.source}: give {allowed_values(field)}{meaning}")
        elif error["type"] == "value_error":
            reason = str(error["ctx"]["error"])
            sentences.append(reason if reason.startswith(key) else f"{key} {place}: {reason}")
        else:
            shown = toml_value(_value_at(written.table, names, error["input"]))
            wanted = f"use {allowed_values(field)}" if field else error["msg"]
            sentences.append(f"{key} = {shown} {place}: {wanted}")
    return list(dict.fromkeys(sentences))


def nearest_key(unknown: str, known: Iterable[str]) -> str | None:
    """The known dotted key that was most likely meant, judged by the whole path and by the last name."""

    def likeness(candidate: str) -> tuple[float, float]:
        path = SequenceMatcher(None, unknown, candidate).ratio()
        name = SequenceMatcher(None, unknown.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return path + name, name

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best)[1] >= 0.6 else None


def same_key(pattern: str, key: str) -> bool:
    """Whether `data.sources.*.weight` stands for `data.sources.python.weight`."""
    names, wanted = key.split("."), pattern.split(".")
    return len(names) == len(wanted) and all(w in ("*", n) for w, n in zip(wanted, names, strict=True))


def allowed_values(field: FieldInfo | None) -> str:
    """The values that a field takes, in words: "a number of at least 0 and below 1"."""
    return _allowed(field.annotation, field.metadata) if field else "a value"


def _allowed(annotation: Any, metadata: Iterable[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [more for m in arguments[1:] for more in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return _allowed(arguments[0], [*inner, *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(argument, metadata) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return " or ".join(toml_value(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each item {_allowed(arguments[0], ())}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_allowed(arguments[0], ())}"
    if origin is dict:
        return "one or more named tables"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a table"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{words[bound]} {getattr(m, bound)}"
        for m in metadata
        for bound in words
        if isinstance(m, annotated_types.BaseMetadata) and hasattr(m, bound)
    ]
    patterns = [f"that matches {m.pattern}" for m in metadata if getattr(m, "pattern", None)]
    return " ".join([kinds.get(annotation, "a value"), " and ".join(bounds + patterns)]).strip()


def toml_value(value: Any) -> str:
    """A value as TOML writes it; TOML has no word for None, so that it reads `none`."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml_value(inner)}" for name, inner in value.items()) + "}"
    return str(value)


def _value_at(table: Any, names: list[str], otherwise: Any) -> Any:
    for name in names:
        if not isinstance(table, dict) or name not in table:
            return otherwise
        table = table[name]
    return table


def _spelled_out(known: Iterable[str], table: Table) -> list[str]:
    """The known keys, with each `*` replaced by the names that the user gave."""
    keys = []
    for key in known:
        before, star, after = key.partition(".*")
        named = _value_at(table, before.split("."), {}) if star else {}
        names = list(named) if isinstance(named, dict) and named else ["NAME"]
        keys += [f"{before}.{name}{after}" for name in names] if star else [key]
    return keys


def _siblings(key: str, known: Iterable[str]) -> str:
    """The known keys of the innermost known table around a key."""
    section = key.rpartition(".")[0]
    names = [k.rpartition(".")[2] for k in known if same_key(k.rpartition(".")[0], section) and k[-1] != "*"]
    return ", ".join(f"{section}.{name}".lstrip(".") for name in names) or _siblings(section, known)
