"""The objective of a run: what its recipe says, with the tokens of its data."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer

from bushcraft.data.loader import Rows
from bushcraft.data.manifest import DatasetManifest
from bushcraft.errors import RecipeError
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import (
    UL2,
    Causal,
    Objective,
    ObjectiveMixture,
    Prefix,
    SpanCorruption,
    batch_of,
)
from bushcraft.objectives.sft import Instructions
from bushcraft.objectives.special import MODES, SpecialTokens, special_tokens
from bushcraft.objectives.ul2 import UL2 as UL2_TABLE
from bushcraft.objectives.ul2 import UL2R as UL2R_TABLE
from bushcraft.store.depot import Depot
from bushcraft.train.objective_config import ObjectiveConfig, SingleObjective
from bushcraft.train.recipe import Recipe

Weights = tuple[tuple[int, Mapping[str, float]], ...]
"""From which position on the parts of a mixture have which weights."""


@dataclass(frozen=True)
class DatasetTokens(SpecialTokens):
    """The special tokens of an objective, and what stands around answers in the data."""

    answer_marks: tuple[int, int] | None = None
    """Before and behind an answer; no model sees them. None where the data are text."""


def objective_tokens(depot: Depot, dataset: DatasetManifest, config: ObjectiveConfig) -> DatasetTokens:
    """The tokens that are no text, of the data set's tokenizer and for that objective."""
    tokenizer = Tokenizer.from_buffer(depot.read(dataset.tokenizer))
    examples = dataset.examples
    marks = (examples.target_begin, examples.target_end) if examples else None
    found = special_tokens(
        tokenizer.get_vocab(with_added_tokens=True),
        dataset.vocab_size,
        dataset.separator_id,
        config.n_sentinels if config.hides_spans else 0,
        MODES[config.mode_names] if config.has_modes else (),
    )
    return DatasetTokens(**vars(found), answer_marks=marks)


def check_vocabulary(recipe: Recipe, special: SpecialTokens) -> None:
    """Errors: `RecipeError` where the model has no room for the objective's tokens."""
    if special.end > recipe.model.vocab_size:
        raise RecipeError(
            f"model.vocab_size = {recipe.model.vocab_size} has no room for the objective's {len(special.names())} "
            "sentinels and mode tokens above the tokenizer's vocabulary",
            f"Use at least {special.end}",
        )


def build_objective(recipe: Recipe, special: DatasetTokens, weights: Weights) -> Objective:
    """The recipe's objective; `weights` of its parts, if it is a mixture.

    Its parts are taken in the order of their names, as a stored recipe has them, whatever the order in a file.
    """
    config = recipe.objective
    if config.kind != "mixture":
        return _single(config, recipe, special)
    return ObjectiveMixture(
        {name: _single(part, recipe, special) for name, part in sorted(config.parts.items())}, weights
    )


def microbatches(recipe: Recipe, objective: Objective, separator: int, rows: Rows, begin: int) -> list[Batch]:
    """The batches of rows that stand at positions from `begin` on, so many rows in each as the recipe says."""
    size = recipe.run.microbatch_size
    parts = [(first, rows.part(first, min(first + size, len(rows.real)))) for first in range(0, len(rows.real), size)]
    return [batch_of(objective, part, begin + first, recipe.model.kind, separator) for first, part in parts]


def _single(part: SingleObjective, recipe: Recipe, special: DatasetTokens) -> Objective:
    seed, both_ways = recipe.run.seed, recipe.objective.prompts_both_ways
    match part.kind:
        case "causal":
            return Causal(recipe.objective.document_mask)
        case "prefix":
            return Prefix(seed)
        case "span_corruption":
            return SpanCorruption(special, seed, part.mean_span, part.corruption, both_ways)
        case "ul2":
            return UL2(special, seed, UL2_TABLE, both_ways)
        case "ul2r":
            return UL2(special, seed, UL2R_TABLE, both_ways)
        case "sft":
            assert special.answer_marks is not None, "a run on text was let in"
            every_answer = recipe.model.kind == "encoder_decoder"
            return Instructions(special.separator, *special.answer_marks, every_answer, both_ways)
    raise AssertionError(part.kind)
