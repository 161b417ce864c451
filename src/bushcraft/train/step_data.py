"""What a rank reads of a step: its share of the positions, in as many microbatches as every other rank has."""

from dataclasses import dataclass

from bushcraft.data.loader import Loader, Rows
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import Objective, batch_of
from bushcraft.parallel.batches import microbatch_bounds, without_weight
from bushcraft.parallel.layout import Coordinate, Layout
from bushcraft.parallel.ranks import Ranks
from bushcraft.train.recipe import Recipe


@dataclass(frozen=True)
class StepData:
    """A step consumes the positions [begin, until); these are the batches of this rank."""

    begin: int
    until: int
    digests: bytes
    """Of the sequences that this rank reads, and answers for: several may read the same."""
    n_tokens: int
    """Of the corpus, among them."""
    n_targets: float
    """In the batches, by their weights."""
    batches: list[Batch]


@dataclass(frozen=True)
class StepReader:
    """Makes the data of a step from its positions; what is read follows from them and the rank's place alone."""

    recipe: Recipe
    loader: Loader
    objective: Objective
    layout: Layout
    at: Coordinate
    receipts: int
    """Of the run: see `RunRecord`."""

    def __call__(self, begin: int, until: int) -> StepData:
        """Errors: `CorruptObjectError`, `StoreError`."""
        n, readers, reader = until - begin, self.layout.readers, self.layout.reader(self.at)
        bounds = microbatch_bounds(n, self.recipe.run.microbatch_size, readers, reader)
        first, last = min(bounds[0][0], n - 1), max(bounds[-1][1], min(bounds[0][0], n - 1) + 1)
        rows = self.loader.rows(begin + first, begin + last)
        batches = [self._batch(rows, begin + first, b - first, e - first) for b, e in bounds]
        answers = bounds[-1][1] > bounds[0][0] and (self.at.pipe, self.at.context, self.at.tensor) == (0, 0, 0)
        return StepData(
            begin,
            until,
            self._digests(rows, begin, until) if answers else b"",
            int(rows.real.sum()) if answers else 0,
            float(sum(batch.loss_weights.sum() for batch in batches)) if answers else 0.0,
            batches,
        )

    def _digests(self, rows: Rows, begin: int, until: int) -> bytes:
        """What enters the receipt: of an old run of many readers, one has to read what all of them do."""
        if self.receipts == 2:
            return rows.digests()
        return self.loader.rows(begin, until).digest() if self.layout.reader(self.at) == 0 else b""

    def _batch(self, rows: Rows, position: int, begin: int, end: int) -> Batch:
        kind, separator = self.recipe.model.kind, self.loader.sources[0].manifest.separator_id
        if end > begin:
            return batch_of(self.objective, rows.part(begin, end), position + begin, kind, separator)
        begin = min(begin, len(rows.real) - 1)
        return without_weight(batch_of(self.objective, rows.part(begin, begin + 1), position + begin, kind, separator))


@dataclass(frozen=True)
class WholeStep:
    """Of a step what all ranks have read."""

    digests: bytes
    """Of all sequences, in the order of their positions."""
    n_tokens: int
    n_targets: float
    """At least one, because losses are divided by it."""
    flops: float


def gather_step(ranks: Ranks, data: StepData, flops: float) -> WholeStep:
    """`flops` are those of the batches of `data`. Readers come in the order of their ranks."""
    mine = (data.digests, data.n_tokens, data.n_targets, flops if data.n_tokens else 0.0)
    digests, n_tokens, n_targets, all_flops = zip(*ranks.gathered(mine), strict=True)
    return WholeStep(b"".join(digests), sum(n_tokens), max(1.0, sum(n_targets)), sum(all_flops))
