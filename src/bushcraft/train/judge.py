"""A run judged on held-out text, during training and at its end, for its ledger."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.objectives.batch import Batch
from bushcraft.train.evaluate import heldout_documents, score
from bushcraft.train.objective_loss import objective_loss
from bushcraft.train.progress import Progress
from bushcraft.train.session import Session
from bushcraft.train.step import losses
from bushcraft.train.stop import StopRequest

EVALUATION_TOKENS = 8192
"""Of one batch."""


@dataclass(frozen=True)
class Judgement:
    """What the ledger's `evaluation` event says; None is what could not be measured."""

    bits_per_byte: float | None
    n_bytes: int
    n_documents: int
    objective_loss: float | None
    """Nats a target, under the objective that is trained, where that is not causal."""

    def __str__(self) -> str:
        figures = [] if self.bits_per_byte is None else [f"{self.bits_per_byte:.4f} bits/byte"]
        figures += [] if self.objective_loss is None else [f"{self.objective_loss:.4f} nats a target"]
        return ", ".join(figures) or "nothing"


def judge(session: Session, progress: Progress, max_bytes: int | None, stop: StopRequest) -> Judgement:
    """Score the held-out documents of the first source; an `evaluation` event. Raises `Stopped` between batches."""
    recipe, depot, manifest = session.recipe, session.store.depot, session.sources[0].manifest
    total = min(manifest.splits["heldout"].n_text_bytes, max_bytes or math.inf)

    def nats(batch: Batch) -> Tensor:
        stop.check()
        return losses(session.model, batch, session.record.precision)[0]

    bits, n_bytes, n_documents, loss = None, 0, 0, None
    with session.ledger.clock.phase("evaluate"), torch.no_grad():
        if recipe.model.kind == "decoder":
            found = score(
                nats,
                heldout_documents(depot, manifest, max_bytes),
                session.separator,
                recipe.run.sequence_length,
                max(1, EVALUATION_TOKENS // recipe.run.sequence_length),
                lambda n: progress.busy(f"evaluating on held-out text: {100 * n / total:.0f} %"),
            )
            bits, n_bytes, n_documents = found.bits_per_byte, found.n_bytes, found.n_documents
        if recipe.objective.kind != "causal":
            loss = objective_loss(nats, depot, manifest, recipe, recipe.evaluate.heldout_bytes)
    judgement = Judgement(bits, n_bytes, n_documents, loss)
    session.ledger.append("evaluation", session.position, durable=True, **vars(judgement))
    return judgement
