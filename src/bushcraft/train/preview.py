"""What a batch asks of the model, for a person's eyes: what it reads, and what it must predict.

Made from the batch itself, after packing, so that what is shown is what is trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rich.text import Text
from torch import Tensor

from bushcraft.objectives.batch import Batch

Role = Literal["both ways", "read", "predicted"]
STYLES: dict[Role, str] = {"both ways": "cyan", "read": "dim", "predicted": "bold green"}
SPECIAL_STYLE = "reverse"
"""Of tokens that are no text: sentinels, modes, separators."""
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens with one role."""

    role: Role
    tokens: list[int]


@dataclass(frozen=True)
class Example:
    """One segment of a batch."""

    encoder: list[Span]
    """Empty in a decoder's batch."""
    decoder: list[Span]
    """What it reads, each token that it must predict in its place; the first token is never predicted."""

    def to_json(self, decode: Decode) -> dict[str, Any]:
        """Both sides as lists of {role, text}."""

        def side(spans: list[Span]) -> list[dict[str, str]]:
            return [{"role": span.role, "text": decode(span.tokens)} for span in spans]

        return {"encoder": side(self.encoder), "decoder": side(self.decoder)}


def examples(batch: Batch) -> Iterator[Example]:
    """The segments of a batch from which something is to be predicted."""
    for n, (row, start, prefix, length) in enumerate(
        zip(*(column.tolist() for column in _columns(batch)), strict=True)
    ):
        place = slice(start, start + length)
        weights = batch.loss_weights[row, place]
        if not weights.any():
            continue
        tokens = [*batch.tokens[row, place].tolist(), int(batch.targets[row, start + length - 1])]
        roles: list[Role] = ["both ways" if prefix else "read"]
        roles += [_role(i + 1 < prefix, weight > 0) for i, weight in enumerate(weights.tolist())]
        yield Example(_encoder_side(batch, n), _spans(tokens, roles))


def _columns(batch: Batch) -> tuple[Tensor, ...]:
    segments = batch.segments
    return segments.row, segments.start, segments.prefix_length, segments.length


def _role(in_prefix: bool, predicted: bool) -> Role:
    return "predicted" if predicted else "both ways" if in_prefix else "read"


def _encoder_side(batch: Batch, n: int) -> list[Span]:
    if batch.encoder is None:
        return []
    segments = batch.encoder.segments
    row, start, length = (int(column[n]) for column in (segments.row, segments.start, segments.length))
    return [Span("both ways", batch.encoder.tokens[row, start : start + length].tolist())]


def _spans(tokens: list[int], roles: list[Role]) -> list[Span]:
    paired = groupby(zip(roles, tokens, strict=True), key=lambda pair: pair[0])
    return [Span(role, [token for _, token in group]) for role, group in paired]


def colored(spans: list[Span], decode: Decode, special: set[int]) -> Text:
    """The text of a side: each role in its colour, tokens that are no text reversed."""
    text = Text()
    for span in spans:
        for is_special, group in groupby(span.tokens, key=lambda token: token in special):
            style = f"{STYLES[span.role]} {SPECIAL_STYLE}" if is_special else STYLES[span.role]
            text.append(decode(list(group)), style)
    return text


def plain(spans: list[Span], decode: Decode) -> str:
    """The text of a side without colours: what is to be predicted stands in ⟦ ⟧."""
    return "".join(f"⟦{decode(span.tokens)}⟧" if span.role == "predicted" else decode(span.tokens) for span in spans)


def legend() -> Text:
    """What the colours mean."""
    text = Text()
    for role, style in STYLES.items():
        text.append(f" {role} ", style)
    return text
