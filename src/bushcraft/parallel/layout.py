"""A layout: how many ranks share what. It says nothing of the model, and the model says nothing of it.

`replicate` copies of the weights, each in `shard` parts, read different sequences; `context` splits the positions of
a sequence, `tensor` the matrices (and, between them, the positions again), `pipe` the layers. Ranks that differ only in
`tensor` are neighbours, then those that differ in `context`, `shard`, `replicate` and `pipe`: what talks most is
nearest.
"""

import math
from dataclasses import astuple, dataclass, fields

from bushcraft.errors import RecipeError
from bushcraft.model.config import ModelConfig


@dataclass(frozen=True)
class Coordinate:
    """A rank's place on each mesh axis."""

    pipe: int = 0
    replicate: int = 0
    shard: int = 0
    context: int = 0
    tensor: int = 0


@dataclass(frozen=True)
class Layout:
    """Ranks on each mesh axis, slowest first."""

    pipe: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    stages_per_rank: int = 1
    """Parts of the model that a rank of `pipe` has: more than one are taken in turn (Narayanan et al. 2021,
    arXiv:2104.04473, section 2.2)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Ranks on each axis, in the order of `AXES`."""
        return astuple(self)[: len(AXES)]

    @property
    def world_size(self) -> int:
        return math.prod(self.shape)

    @property
    def readers(self) -> int:
        """Groups of ranks that read different sequences."""
        return self.replicate * self.shard

    @property
    def n_stages(self) -> int:
        """Parts into which the layers are cut."""
        return self.pipe * self.stages_per_rank

    @property
    def sequence_parts(self) -> int:
        """Into so many parts the positions of a row are cut."""
        return self.context * self.tensor

    def coordinate(self, rank: int) -> Coordinate:
        """Where a rank stands."""
        place = []
        for size in reversed(self.shape):
            rank, at = divmod(rank, size)
            place.append(at)
        return Coordinate(*reversed(place))

    def reader(self, at: Coordinate) -> int:
        """Which of the `readers` a rank belongs to."""
        return at.replicate * self.shard + at.shard

    def __str__(self) -> str:
        named = [f"{axis} {size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        if self.stages_per_rank > 1:
            named.append(f"{self.stages_per_rank} stages a rank")
        return " × ".join(named) or "one rank"


AXES = tuple(field.name for field in fields(Coordinate))
"""The mesh axes, slowest first."""


def check_layout(layout: Layout, model: ModelConfig) -> None:
    """Errors: `RecipeError` that says which numbers would fit, where the model cannot be cut so."""
    tensor, context = layout.tensor, layout.context
    for name, number in (("n_heads", model.n_heads), ("n_kv_heads", model.n_kv_heads), ("d_ff", model.d_ff)):
        if number % tensor:
            _refuse(f"parallel.tensor = {tensor} does not divide model.{name} = {number}", _divisors(model))
    if model.vocab_size < tensor * 2:
        _refuse(f"parallel.tensor = {tensor} is too much for model.vocab_size = {model.vocab_size}", _divisors(model))
    heads, kv_heads = model.n_heads // tensor, model.n_kv_heads // tensor
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    if context not in fitting:
        _refuse(
            f"parallel.context = {context} does not fit {heads} query heads and {kv_heads} key/value heads"
            + (" of each tensor rank" if tensor > 1 else ""),
            fitting,
        )
    if layout.n_stages == 1:
        return
    if model.kind == "encoder_decoder":
        raise RecipeError(
            f"parallel.pipe = {layout.pipe} does not work with an encoder-decoder: every stage of the decoder would "
            "need the encoder's output, and its gradients would have to come back from all of them",
            "Use parallel.shard, parallel.tensor or parallel.context",
        )
    if model.n_layers < layout.n_stages:
        most = model.n_layers // layout.stages_per_rank
        _refuse(
            f"parallel.pipe = {layout.pipe} times {layout.stages_per_rank} stages is more than model.n_layers = "
            f"{model.n_layers}",
            list(range(1, most + 1)),
        )


def check_microbatches(layout: Layout, n_microbatches: int, n_sequences: int) -> None:
    """Errors: `RecipeError` where the microbatches of a step do not fit the pipeline's schedule."""
    if layout.n_stages == 1:
        return
    step = layout.pipe if layout.stages_per_rank > 1 else 1
    if n_microbatches >= layout.n_stages and n_microbatches % step == 0:
        return
    most = -(-n_sequences // layout.readers)
    needed = -(-layout.n_stages // step) * step
    divisors = (n for n in range(1, most + 1) if n_sequences % n == 0)
    sizes = [n for n in divisors if -(-most // n) >= needed and -(-most // n) % step == 0]
    told = f"a multiple of {step}, and " if step > 1 else ""
    raise RecipeError(
        f"{n_microbatches} microbatches of run.microbatch_size do not fit {layout.n_stages} pipeline stages: there "
        f"have to be {told}{layout.n_stages} or more",
        f"Use run.microbatch_size = {_listed(sizes)}"
        if sizes
        else f"Use a run.global_batch_size of {needed * layout.readers} or more, or less of parallel.pipe",
    )


def _divisors(model: ModelConfig) -> list[int]:
    number = math.gcd(model.n_heads, model.n_kv_heads, model.d_ff)
    return [n for n in range(1, number + 1) if number % n == 0 and n * 2 <= model.vocab_size]


def _refuse(message: str, fitting: list[int]) -> None:
    raise RecipeError(message, f"Use {_listed(fitting)}")


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
