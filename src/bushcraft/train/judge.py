"""A run judged on held-out text, during training and at its end, for its ledger."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.model.transformer import Model
from bushcraft.objectives.batch import Batch
from bushcraft.train.evaluate import heldout_documents
from bushcraft.train.heldout import score_text
from bushcraft.train.objective_loss import objective_loss
from bushcraft.train.progress import Progress
from bushcraft.train.sample import TextModel
from bushcraft.train.session import Session
from bushcraft.train.step import losses
from bushcraft.train.stop import StopRequest


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
    """Score the held-out documents of the first source; an `evaluation` event. Raises `Stopped` between batches.

    The first rank scores them, with all weights.
    """
    with session.ledger.clock.phase("evaluate"):
        judgement = session.with_whole_model(lambda model: _scores(session, model, progress, max_bytes, stop))
    session.ledger.append("evaluation", session.position, durable=True, **vars(judgement))
    return judgement


def _scores(session: Session, model: Model, progress: Progress, max_bytes: int | None, stop: StopRequest) -> Judgement:
    recipe, depot, manifest = session.recipe, session.store.depot, session.sources[0].manifest
    total = max(1, min(manifest.splits["heldout"].n_text_bytes, max_bytes or math.inf))

    def nats(batch: Batch) -> Tensor:
        stop.check()
        return losses(model, batch, session.record.precision)[0]

    def busy(n_bytes: int) -> None:
        progress.busy(f"evaluating on held-out text: {100 * n_bytes / total:.0f} %")

    loss = None
    with torch.no_grad():
        documents = heldout_documents(depot, manifest, max_bytes) if manifest.kind == "text" else iter(())
        found = score_text(
            TextModel.of(model, depot, manifest, recipe), session.record.precision, documents, stop.check, busy
        )
        if recipe.objective.kind != "causal":
            loss = objective_loss(nats, depot, manifest, recipe, recipe.evaluate.heldout_bytes)
    return Judgement(found.bits_per_byte, found.n_bytes, found.n_documents, loss)
