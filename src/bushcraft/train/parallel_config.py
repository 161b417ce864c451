"""The recipe's section about layouts: what may change whenever a run goes on."""

from typing import Literal

from bushcraft.errors import RecipeError
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.parallel_model import Settings
from bushcraft.train.section import Count, Section


class ParallelConfig(Section):
    """How the work is cut over ranks. It changes neither what is trained nor on what, and may change at any time."""

    replicate: Count = 1
    """Copies of the weights, each of which reads other sequences (HSDP)."""
    shard: Count | None = None
    """Ranks over which each copy of the weights, their gradients and the optimizer is cut, and which read other
    sequences (FSDP). If it is not given: as many as the other axes leave of all ranks."""
    tensor: Count = 1
    """Ranks over which heads, hidden units and the vocabulary are cut, and between layers the positions. They talk in
    every layer: keep them inside of a node."""
    context: Count = 1
    """Ranks over which the positions of a sequence are cut; attention exchanges them for heads."""
    pipe: Count = 1
    """Ranks over which the layers of a decoder are cut."""
    stages_per_rank: Count = 1
    """Stages of a pipeline that each of its ranks has; more of them wait less and talk more."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again in place of keeping it: nothing, all but the results of products and
    attention, or whole layers."""
    reshard: bool = True
    """Drop a layer's gathered weights after its forward pass, and gather them again for its backward pass."""
    reduce_each_microbatch: bool = False
    """Sum gradients over ranks after each microbatch, not once a step: less memory, more traffic."""

    @property
    def asked_ranks(self) -> int:
        """So many ranks make this layout, if nobody says how many there are."""
        return self.replicate * (self.shard or 1) * self.tensor * self.context * self.pipe

    def layout(self, world_size: int) -> Layout:
        """The layout of so many ranks. Errors: `RecipeError` that says which numbers would fit."""
        given = self.replicate * self.tensor * self.context * self.pipe
        shard = self.shard or world_size // given
        if given * shard != world_size:
            named = ", ".join(
                f"parallel.{axis} = {size}"
                for axis in ("replicate", "shard", "tensor", "context", "pipe")
                if (size := getattr(self, axis)) not in (None, 1)
            )
            unit = given * (self.shard or 1)
            fitting = (
                f"{unit} ranks"
                if self.shard
                else f"a multiple of {given} ranks, such as {-(-world_size // given) * given}"
            )
            raise RecipeError(
                f"{named or 'parallel.shard = 1'} does not fit {world_size} rank{'s' if world_size > 1 else ''}",
                f"Use {fitting}, or change parallel.*",
            )
        return Layout(
            pipe=self.pipe,
            replicate=self.replicate,
            shard=shard,
            context=self.context,
            tensor=self.tensor,
            stages_per_rank=self.stages_per_rank,
        )

    def settings(self, precision: str, z_loss: float) -> Settings:
        """What of it is no number of ranks."""
        return Settings(self.recompute, self.reshard, self.reduce_each_microbatch, z_loss, precision)
