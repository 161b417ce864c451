"""The recipe: everything that a run's result depends on, beside its data and its code.

The models of its sections, which check it as a whole; it never changes afterwards. `resolve.py` reads one.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args, get_origin

from blake3 import blake3
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from bushcraft.errors import RecipeError
from bushcraft.model.config import ModelConfig
from bushcraft.train import overrides as written_by_user
from bushcraft.train.objective_config import ObjectiveConfig
from bushcraft.train.overrides import Table, Written
from bushcraft.train.parallel_config import ParallelConfig
from bushcraft.train.section import Beta, Count, CountOrZero, Fraction, Positive, Section

RUN_LENGTHS = ("run.sequences", "run.tokens", "run.minutes")
CHECKPOINT_INTERVALS = ("checkpoint.every_minutes", "checkpoint.every_sequences")


class RunConfig(Section):
    """How long the run is, in which batches and in which arithmetic."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called in lists and file names."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Initial weights, data order and every random draw follow from it."""
    start_from: str | None = None
    """The run, or the object name of the checkpoint, whose weights the run begins with; its own if it is not given. A
    vocabulary may be larger than there: its new rows are initialised."""
    sequences: Count | None = None
    """Length of the run in sequences, rounded up to whole optimizer steps. One of sequences, tokens and minutes."""
    tokens: Count | None = None
    """Length of the run in tokens, rounded up to whole optimizer steps. One of sequences, tokens and minutes."""
    minutes: Positive | None = None
    """Time to train for. The first start measures the speed and turns it into sequences, once; the number is
    recorded, so that a resumed run ends at the same place. One of sequences, tokens and minutes."""
    global_batch_size: Count
    """Sequences per optimizer step, over all devices."""
    microbatch_size: Count
    """Sequences per forward and backward pass of a rank, at most: as many as memory takes. It divides
    global_batch_size."""
    sequence_length: Count
    """Tokens per sequence."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products. "auto" is bf16 where the device computes it fast, else fp32."""
    threads: CountOrZero = 0
    """CPU threads; 0 is one for each core."""
    compile: bool = False
    """Compile the model: a slower start, faster steps."""

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        given = _given(self, RUN_LENGTHS)
        if not given:
            raise ValueError("run has no length: give one of " + ", ".join(RUN_LENGTHS))
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: keep one of them")
        return self

    @model_validator(mode="after")
    def _microbatches_fill_the_batch(self) -> Self:
        whole, part = self.global_batch_size, self.microbatch_size
        if whole % part:
            divisors = [size for size in range(1, whole + 1) if whole % size == 0]
            nearest = sorted(sorted(divisors, key=lambda size: abs(size - part))[:12])
            sizes = " or ".join(", ".join(map(str, nearest)).rsplit(", ", 1))
            raise ValueError(
                f"run.microbatch_size = {part} does not divide run.global_batch_size = {whole}: use {sizes}"
            )
        return self

    def planned_sequences(self) -> int | None:
        """Sequences of the whole run, in whole optimizer steps; None where `minutes` has yet to be measured."""
        wanted = self.sequences or (self.tokens and -(-self.tokens // self.sequence_length))
        return wanted and -(-wanted // self.global_batch_size) * self.global_batch_size


class SourceConfig(Section):
    """One named source of the mixture."""

    dataset: str = Field(min_length=1)
    """The data set's name, as `bushcraft data build` gave it."""
    weight: Positive = 1.0
    """Its share of the sequences, relative to the other sources."""


class DataConfig(Section):
    """Which sequences the run reads, and in which order."""

    shuffle_window: Count = 262_144
    """Sequences that are shuffled among each other; the larger, the better mixed and the more scattered the reads."""
    cache_mib: CountOrZero = 256
    """Memory for data that was read and verified, in MiB."""
    sources: dict[str, SourceConfig] = Field(min_length=1)
    """The mixture: a table [data.sources.NAME] for each source."""

    @field_validator("sources")
    @classmethod
    def _names_fit_a_dotted_key(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for name in sources:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f'data.sources has the name "{name}": use letters, digits, "-" and "_"')
        return sources


class OptimizerConfig(Section):
    """How the weights follow the gradients."""

    name: Literal["adamw", "muon"] = "adamw"
    """The update rule: AdamW (Loshchilov & Hutter, arXiv:1711.05101) for all parameters, or Muon (Jordan et al. 2024)
    for the matrices inside of the model and AdamW for embeddings and vectors, with one learning rate for both."""
    learning_rate: Positive
    """The peak, which `schedule` scales."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), strict=False)
    """How slowly the averages of the gradient and of its square forget."""
    eps: Positive = 1e-8
    """Floor under the root of the averaged square."""
    momentum: Beta = 0.95
    """How slowly Muon's average of the gradient forgets."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of the matrices, times the learning rate."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; a longer one is scaled down to it. 0 leaves gradients alone."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log of the softmax's denominator in the loss, which keeps logits small (Chowdhery et
    al. 2022, arXiv:2204.02311, section 5, uses 1e-4)."""


class ScheduleConfig(Section):
    """The learning rate over the run: warm up, stay, decay (Hägele et al. 2024, arXiv:2405.18392)."""

    kind: Literal["wsd"] = "wsd"
    """"wsd": warmup, stable, decay. A longer run shares the stable part of a shorter one."""
    warmup: Fraction = 0.02
    """Fraction of the run in which the rate rises from 0."""
    decay: Fraction = 0.2
    """Fraction of the run in which the rate falls, at the end."""
    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    """"sqrt": 1 - √x over the decay, which ends at a lower loss than "linear" (section 3 of the source)."""
    final_fraction: Fraction = 0.0
    """The rate at the end, as a fraction of the peak."""

    @model_validator(mode="after")
    def _parts_fit_the_run(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"schedule.warmup = {self.warmup} and schedule.decay = {self.decay} are more than the whole run: "
                f"use a decay of at most {1 - self.warmup:.6g}"
            )
        return self


class CheckpointConfig(Section):
    """How often the run is saved, and how. Nothing that was saved is deleted."""

    every_minutes: Positive | None = None
    """Minutes from one checkpoint to the next: the work that a crash can cost. Without it and every_sequences the
    interval follows from what a save costs and how often this run has failed (Young 1974; Daly 2006)."""
    every_sequences: Count | None = None
    """Sequences from one checkpoint to the next, at just these positions. Or every_minutes."""
    asynchronous: bool = True
    """Train on while a checkpoint is written: the steps wait only for a copy of the state in memory."""
    snapshots: Count = 2
    """Copies of the state in memory, as far as there is memory: the last of them serves a restart on this machine."""
    max_age_minutes: Positive = 120.0
    """Saves that fail, or do not end, do not stop the run before they have been tried for so long."""

    @model_validator(mode="after")
    def _has_one_interval(self) -> Self:
        given = _given(self, CHECKPOINT_INTERVALS)
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: keep one of them")
        return self


class EvaluateConfig(Section):
    """How the run is judged on held-out data."""

    every_sequences: CountOrZero = 0
    """Sequences from one evaluation to the next; 0 evaluates only at the end."""
    heldout_bytes: Count = 1_000_000
    """Held-out bytes that an evaluation during the run reads at most; the last one reads all."""
    sample_prompts: tuple[str, ...] = Field(default=(), strict=False)
    """Texts for the model to continue at the end of the run."""
    sample_tokens: Count = 64
    """Tokens of each continuation."""


class Recipe(Section):
    """What to train, on what, for how long and how."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="after")
    def _encoder_has_something_to_read(self) -> Self:
        if self.model.kind == "encoder_decoder" and "causal" in self.objective.kinds:
            raise ValueError(
                'objective "causal" leaves the encoder of model.kind = "encoder_decoder" nothing to read: '
                'use "prefix", "span_corruption" or "ul2"'
            )
        return self

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, source: str = "the stored recipe") -> Self:
        """The recipe that `to_json` wrote; `source` is how messages call it."""
        try:
            table = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"{source} is not valid JSON: {error}") from error
        if not isinstance(table, dict):
            raise RecipeError(f"{source} is not a recipe: its JSON is not an object")
        return cls.checked(Written(table, {}, source))

    @classmethod
    def checked(cls, written: Written) -> Self:
        """The recipe of a table; raises one RecipeError that names everything wrong with it."""
        try:
            return cls.model_validate({**{section: {} for section in cls.model_fields}, **written.table})
        except ValidationError as error:
            found = written_by_user.problems(error.errors(), written, recipe_keys())
        if len(found) == 1:
            raise RecipeError(found[0])
        raise RecipeError(f"{len(found)} problems in {written.source}:\n  - " + "\n  - ".join(found))

    def digest(self) -> str:
        """BLAKE3 of the canonical JSON, in hexadecimal."""
        return blake3(self.to_json().encode()).hexdigest()

    def values(self) -> dict[str, Any]:
        """Every value by its dotted key, in the order of the sections."""
        return _flat(self.model_dump())


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, FieldInfo]:
    """Every section, table and value that a recipe can have, by its dotted key, with `*` for any name."""
    keys: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        keys[prefix + name] = field
        inner, path = field.annotation, prefix + name
        if get_origin(inner) is dict:
            inner, path = get_args(inner)[1], f"{path}.*"
            keys[path] = FieldInfo(annotation=inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys |= recipe_keys(inner, f"{path}.")
    return keys


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, each with its old and new value; None where one has no such key."""
    before, after = old.values(), new.values()
    return {key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)}


def _flat(table: Table, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _given(section: Section, keys: Iterable[str]) -> list[str]:
    """The keys of a section that are not None, each with its value, as messages show them."""
    values = {key: getattr(section, key.rpartition(".")[2]) for key in keys}
    return [f"{key} = {written_by_user.toml_value(value)}" for key, value in values.items() if value is not None]
