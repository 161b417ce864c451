"""What a batch asks of the model, for a person's eyes: what it reads, and what it must predict.

Made from the batch itself, after packing, so that what is shown is what is trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Any, Literal

from rich.text import Text
from tokenizers import Tokenizer
from torch import Tensor

from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import batch_of
from bushcraft.store.workspace import Store
from bushcraft.train.objective import check_vocabulary, objective_tokens
from bushcraft.train.open_data import open_datasets, open_loader, open_objective
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import RunRecord

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


@dataclass(frozen=True)
class Preview:
    """Examples, and how to show their tokens."""

    examples: list[Example]
    decode: Decode
    special: set[int]
    """Tokens that are no text."""


def preview_of(store: Store, recipe: Recipe, dataset: str, position: int, n_examples: int) -> Preview:
    """The first examples that a run of the recipe would make of the data set from `position` on.

    Errors: `DataError`, `RecipeError` as when the run is opened.
    """
    source = next(iter(recipe.data.sources.values())).model_copy(update={"dataset": dataset, "weight": 1.0})
    data = recipe.data.model_copy(update={"sources": {dataset: source}})
    recipe = recipe.model_copy(update={"data": data})
    datasets = open_datasets(store, recipe)
    manifest = datasets[dataset][1]
    special = objective_tokens(store.depot, manifest, recipe.objective)
    check_vocabulary(recipe, special)
    record = RunRecord(recipe, {}, 0, "fp32", 1, "")
    loader = open_loader(store, recipe, record, datasets, [])
    objective = open_objective(store, recipe, record, manifest, [])

    def every() -> Iterator[Example]:
        for begin in count(position):
            rows = loader.rows(begin, begin + 1)
            yield from examples(batch_of(objective, rows, begin, recipe.model.kind, manifest.separator_id))

    tokenizer = Tokenizer.from_buffer(store.depot.read(manifest.tokenizer))
    names = special.names()

    def decode(tokens: list[int]) -> str:
        parts = groupby(tokens, key=lambda token: token in names)
        return "".join(
            "".join(names[t] for t in group) if named else tokenizer.decode(list(group), skip_special_tokens=False)
            for named, group in parts
        )

    return Preview(list(islice(every(), n_examples)), decode, {manifest.separator_id, *names})


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
